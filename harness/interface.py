"""What is measured: methods (a loss, a bound or a plain 'none') and samplers that draw from them at an exact budget.

The harness knows both only through this file. A method is one class and one YAML under `studies/method/`, a sampler one class
and one YAML under `studies/sampler/`.

Shapes: B batch, L tokens, V vocabulary (without the mask), N sequences.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import BudgetError, UserError
from harness.nn.transformer import TrunkShape
from harness.tasks.base import ExactTask


@dataclass(frozen=True)
class Problem:
    """What is modelled, and at which size: fixed by the study, the same for every method in it.

    `truth` is the distribution itself where it is known; it is there for the oracle, and no other method may look at it.
    `decode` turns ids into text, for methods that read text with a model of their own.
    """

    vocab_size: int
    length: int
    shape: TrunkShape
    truth: ExactTask | None = field(default=None, compare=False)
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stage:
    """A part of training: its share of the steps; the method decides in `set_stage` what trains in it."""

    name: str
    share: float = 1.0


@dataclass
class Loss:
    """`total` is what is minimised (a scalar); `parts` are named scalars, detached, for the training curves."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """Upper bound on `-log p(x)` in nats per sequence, one Monte Carlo value for each sequence of the batch.

    `parts_B` are its terms (they sum to `total_B`); `estimator` names what was drawn; `exact` marks a likelihood.
    """

    total_B: Tensor
    estimator: str
    parts_B: dict[str, Tensor] = field(default_factory=dict)
    exact: bool = False

    @classmethod
    def of_parts(cls, parts_B: dict[str, Tensor], estimator: str) -> Bound:
        """The bound that is the sum of its terms."""
        return cls(functools.reduce(torch.add, parts_B.values()), estimator, parts_B)


@dataclass(frozen=True)
class Draw:
    """Sampled tokens (N, L) int64 and the network calls spent on them, split by what was called for.

    `calls_N` are the calls that each sequence took, of a sampler that is `adaptive`; their mean is at most the budget.
    `stated` is what somebody else says to have spent on samples that are given.
    """

    x_NL: Tensor
    nfe_latent: int
    nfe_token: int
    draw_dtype: str = "float64"
    calls_N: Tensor | None = None
    stated: int | None = None

    @property
    def nfe(self) -> int:
        return self.nfe_latent + self.nfe_token


class Method(nn.Module, ABC):
    """A generative model of token sequences of length L over V symbols: what is trained, and how likely data are under it.

    Built as `cls(problem, options)`, where `options` is an instance of the dataclass `cls.Options`, whose fields are the
    method's configuration keys. Randomness comes only from the generators that are passed in, so that a run can
    be repeated; every tensor is made on the generator's device. How it is drawn from is a `Sampler`'s.
    """

    Options: type
    #: What the method is called in tables, e.g. "MDLM".
    title: str = ""
    #: "method" for what is compared; "reference" for rows that give the scale (their cost is fixed by their nature);
    #: "floor" for what a perfect network would score at each budget.
    role: str = "method"
    #: Fewest sequences that its loss can be trained on.
    smallest_part: int = 1
    #: Parts of names of parameters that its losses need not reach: a network has them, and this method does not use them.
    idle: tuple[str, ...] = ()
    #: The largest time of the tokens, which training lets grow to 1 (`train.mask_growth`): for `loss` alone, and never read
    #: by `bound`, so that a bound is one at any step.
    largest_time: float = 1.0
    #: The share of the stage's steps that are done, which the training loop sets: for `loss` alone, too.
    progress: float = 0.0
    #: What others have printed of it, by a metric's column and NFE, and where: shown beside what is measured here.
    printed: Mapping[str, Mapping[int, float]] = MappingProxyType({})
    printed_in: str = ""

    def __init__(self, problem: Problem, options: Any) -> None:
        super().__init__()
        self.problem = problem
        self.options = options

    @classmethod
    def files_key(cls, node: Mapping[str, Any]) -> str:
        """Hash of the files with weights that its node of the configuration names; "" where it names none."""
        return ""

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        """Parts of training in order; shares sum to 1. An empty tuple: nothing is trained by gradient descent."""
        return (Stage("all"),)

    def set_stage(self, name: str) -> None:  # noqa: B027 - most methods have one stage and nothing to switch
        """Freeze and unfreeze what the stage `name` trains."""

    def fit(self, train_NL: np.ndarray) -> None:  # noqa: B027 - most methods learn by gradient descent alone
        """Learn in closed form from training sequences (N, L), such as counts; deterministic given the method's own state.

        Without stages: from all of them, each time that the method is loaded. With stages: once, before the first gradient
        step and on the device that trains, from the sequences of the study's nominal budget (`scale.steps` batches, each
        sequence once); what it learns has to be in the state dict, and its FLOPs are part of the cost of training.
        """

    def settle(self, valid_NL: np.ndarray) -> None:  # noqa: B027 - most methods have nothing left to choose
        """Settle what validation text (N, L) decides, such as an order, once the method is fitted or its weights are loaded."""

    def fitted_numbers(self) -> int:
        """How many numbers `fit` learns that no gradient trains: they count as parameters, as any table of a model does."""
        return 0

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Training loss of a batch in the current stage; only for methods with stages."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient descent")

    def calibrate(self, x_NL: Tensor) -> None:  # noqa: B027 - most methods hold no statistics
        """Recompute statistics of the data under the current weights, on training sequences.

        Called when a stage ends and once more when the averaged weights are in place.
        """

    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        """Instruments of the method on held-out sequences (for example nats in its latent), by name; may be empty.

        Read half-way through training and at its end; they change nothing in the method.
        """
        return {}

    # ---- likelihood -----------------------------------------------------------------------------------------------
    @abstractmethod
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound | None:
        """Upper bound on `-log p(x)`, or None where the method has none."""


class Sampler(ABC):
    """A way to draw sequences from a trained method; it has no weights, and a method has any number of them in a study.

    Built as `cls(method, options)` with a method of one of the classes `cls.methods`; `options` is an instance of the
    dataclass `cls.Options`. Raises `UserError` where the options do not go together or do not fit the method.
    """

    Options: type
    methods: type | tuple[type, ...] = Method
    #: "probe" for one that is given something that the method would have to model (a latent of the data): it says what a part
    #: costs, and is not compared. Empty: the method's own role.
    role: str = ""
    #: Whether what is drawn, in many steps, has the law that the method's bound is of.
    bounded: bool = True
    #: Whether the number of calls differs by sequence: a budget is then what their mean may be, in every draw. Calls are
    #: counted by sequence, so that a network has to be called on those alone that are not done (`Draw.calls_N`).
    adaptive: bool = False
    #: Whether it draws by what `Method.settle` has chosen on validation text, which a model by itself does not have.
    settled: bool = False
    #: Whether it can hold given tokens fixed and draw the others (`fill`).
    fills: bool = False
    #: Whether it can where those are the beginning of a sequence.
    fills_prefix: bool = False

    def __init__(self, method: Any, options: Any) -> None:
        if not isinstance(method, self.methods):
            known = self.methods if isinstance(self.methods, tuple) else (self.methods,)
            names = " or ".join(cls.__name__ for cls in known)
            raise UserError(f"sampler {type(self).__name__} draws from {names}, not from {type(method).__name__}")
        self.method, self.options = method, options

    @property
    def title(self) -> str:
        """What method and sampler are called together in tables, e.g. "SEQ, one-call latent"."""
        return self.method.title

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The modules whose forward calls are counted as NFE while drawing, by name."""

    def check_budget(self, nfe: int) -> None:
        """Raise `BudgetError`, in one line with the nearest budget that can be met, unless `nfe` can be met exactly."""
        if nfe < 1:
            raise BudgetError(
                f"nfe={nfe} cannot be met by {self.title}: a sampler calls its network at least once; use 1"
            )

    def budgets(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """The budgets of a study that apply: all of them, unless the cost is fixed by the sampler's nature."""
        return wanted

    def prepare(self, nfe: int, temperature: float, device: torch.device) -> None:  # noqa: B027 - most need nothing
        """Find what a budget needs (a threshold) before sequences are drawn and their calls are counted; kept by the sampler.

        Depends on the weights, the options and these arguments alone. `draw` asks for it where nobody has.
        """

    @abstractmethod
    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        """Draw `n` sequences with exactly `nfe` calls for each; `temperature` divides the logits of x0."""

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        """As `draw`, given the tokens of `x_NL` that are not hidden: they stay. Of samplers that fill."""
        raise UserError(f"{self.title} cannot hold given tokens fixed")

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound | None:
        """Upper bound on `-log p(x)` under what is drawn; None where there is none."""
        return self.method.bound(x_BL, generator) if self.bounded else None

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor | None:
        """`-log q(x | path)` of the draw in `nfe` calls along one random path, (B,) float64 nats; None without one.

        A path says which positions are revealed in which call; it is drawn as `draw` draws it, blind to the tokens, and
        given it the probability of x is `prod_k prod_{i in call k} p(x_i | x revealed before)`. The mean over
        paths of `exp(-path_nll)` is the sampler's law q_K(x), so `-log mean exp(-path_nll)` over any number of paths is
        an upper bound on `-log q_K(x)` in the mean (Burda et al. 2016). Temperature 1.
        """
        return None


class Callless(Sampler):
    """One that calls no network: its only budget is 0."""

    def networks(self) -> Mapping[str, nn.Module]:
        return {}

    def budgets(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        return (0,)

    def check_budget(self, nfe: int) -> None:
        if nfe != 0:
            raise BudgetError(f"nfe={nfe} cannot be met by {self.title}: it has no network to call; use 0")
