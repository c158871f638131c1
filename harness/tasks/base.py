"""What a task with an exact answer offers: samples, `log p(x)`, the entropy, and `p(x_i | x_S)` for any revealed set S.

A denoiser made of these conditionals is the best that a masked model can be; what it scores in a sampler that draws the
positions of one step independently is the floor of all such models.

Shapes: N sequences, L tokens, V symbols, F statistics, C support.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from harness.errors import UserError


@dataclass(frozen=True)
class Exact:
    """Known numbers of a task, nats per sequence; `error` is the quadrature's or Monte Carlo's (0: closed form)."""

    entropy: float
    total_correlation: float
    latent_information: float | None = None  # I(X; cause), where a cause makes the tokens independent
    error: float = 0.0


class ExactTask(ABC):
    """A distribution p over sequences of `length` symbols out of `vocab_size`, fixed by its options.

    Everything is computed in float64 on the device of its inputs. No method but the oracle may look at it.
    """

    name: str
    vocab_size: int
    length: int

    @property
    @abstractmethod
    def exact(self) -> Exact:
        """Entropy and what else is known."""

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, L) int64 draws from p."""

    @abstractmethod
    def log_prob(self, x_NL: Tensor) -> Tensor:
        """log p(x), (N,) float64 nats; minus infinity where x is impossible."""

    @abstractmethod
    def conditionals(self, x_NL: Tensor, known_NL: Tensor) -> Tensor:
        """log p(x_i = v | x_S) for every i, (N, L, V) float64, where S are the positions with `known_NL` true.

        Ids at positions that are not known may be anything (also V, the mask). At known positions the result is a point
        mass. A prefix of probability 0 (a sampler can reach one) gives finite or minus infinite values, never NaN, and
        at least one symbol stays possible: the marginals p(x_i) are used where nothing else is defined.
        """

    @abstractmethod
    def statistics(self, x_NL: Tensor) -> Tensor:
        """(N, F) float64 sufficient statistics, or posterior means of the cause, on which two sets of samples are compared."""

    def support(self) -> Tensor | None:
        """All sequences of positive probability, (C, L) int64, or None where there are more than 4096 of them."""
        return None

    def posterior(self, x_NL: Tensor) -> Tensor | None:
        """Posterior over the finite (or gridded) cause that makes tokens independent, (N, C) float64; None without one."""
        return None


def require_task(task: ExactTask | None, who: str) -> ExactTask:
    """`task`, or a `UserError` that says what `who` (for example "method=oracle") needs."""
    if task is None:
        raise UserError(f"{who} needs data with an exact answer; choose data=binsaw, hmm, templates or permutation")
    return task
