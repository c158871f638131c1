"""Small worlds whose answers are known, and networks that are tables or closed forms, for tests of the mathematics.

A stand-in takes the place of a method's network, with the same call. Shapes: B sequences, L tokens, V symbols (id V is
the mask), M selected positions, P = (V+1)^L masked patterns, X = V^L all sequences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from baselines.autoregressive import Autoregressive
from baselines.mdlm import MDLM
from baselines.ngram import NGram
from baselines.oracle import Oracle
from baselines.samplers.ancestral import Ancestral
from baselines.samplers.counts import Counts
from baselines.samplers.left_to_right import LeftToRight
from harness.config.schema import ScaleConfig, TrainConfig
from harness.contracts.world import generator_of, scramble, tiny_problem, token_data  # noqa: F401
from harness.data.base import TokenData
from harness.interface import Method, Sampler
from harness.training.loop import Job
from harness.training.precision import Numerics
from lddm.fuji import FUJI
from lddm.samplers.codes import Codes
from lddm.samplers.diffusion import Diffusion
from lddm.samplers.path import AlongPath
from lddm.seq import SEQ
from lddm.seq_discrete import SEQDiscrete


@pytest.fixture(autouse=True)
def one_thread():
    """One thread and one seed of weights for each test: neither cores nor the order of tests change a result."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


#: The sampler that each class of method is measured with unless told.
OWN: dict[type[Method], type[Sampler]] = {
    MDLM: Ancestral, Oracle: Ancestral, Autoregressive: LeftToRight, NGram: Counts, FUJI: AlongPath, SEQ: Diffusion,
    SEQDiscrete: Codes,
}  # fmt: skip


def sampler_of(method: Method, cls: type[Sampler] | None = None, **options) -> Sampler:
    """A sampler on `method`: of the class `cls`, or its own."""
    cls = cls or next(own for kind, own in OWN.items() if isinstance(method, kind))
    return cls(method, cls.Options(**options))


# ---- statistics -----------------------------------------------------------------------------------------------------
def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of `counts` under `probabilities` (flat); a count where the probability is 0 gives 0."""
    counts, probabilities = np.asarray(counts, float).ravel(), np.asarray(probabilities, float).ravel()
    if counts[probabilities == 0].sum() > 0:
        return 0.0
    keep = probabilities > 0
    expected = counts.sum() * probabilities[keep] / probabilities[keep].sum()
    assert expected.min() >= 5, "too few draws for a chi-square test"
    return float(stats.chisquare(counts[keep], expected).pvalue)


def monte_carlo(values_R: list[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and its standard error over independent repetitions (first axis)."""
    values = np.asarray(values_R, dtype=np.float64)
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def bound_by_x(
    method, x_XL: Tensor, copies: int, repeats: int, part: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean bound of each sequence and its standard error over `repeats` batches that hold each `copies` times."""
    values = []
    for r in range(repeats):
        with torch.no_grad():
            bound = method.bound(x_XL.repeat(copies, 1), generator_of(1000 + r))
        total = bound.total_B if part is None else bound.parts_B[part]
        values.append(total.view(copies, -1).mean(0).numpy())
    return monte_carlo(values)


# ---- laws over all sequences ----------------------------------------------------------------------------------------
def all_sequences(vocab_size: int, length: int) -> Tensor:
    """Every sequence, (X, L), in the order of `index_of`."""
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))


def index_of(x_BL: Tensor, base: int) -> Tensor:
    """Number of a sequence whose first token is the leading digit."""
    powers = base ** torch.arange(x_BL.shape[1] - 1, -1, -1)
    return (x_BL * powers).sum(1)


def counts_of(x_NL: Tensor, vocab_size: int) -> np.ndarray:
    return torch.bincount(index_of(x_NL, vocab_size), minlength=vocab_size ** x_NL.shape[1]).numpy()


def random_joint(vocab_size: int, length: int, seed: int, spread: float = 1.2) -> np.ndarray:
    """A law over all sequences, (X,), every probability above 0."""
    logits = np.random.default_rng(seed).normal(size=vocab_size**length) * spread
    return np.exp(logits) / np.exp(logits).sum()


class TableNetwork(nn.Module):
    """Stand-in for a token network: logits (L, V) for each of the (V+1)^L masked patterns; time is ignored."""

    def __init__(self, logits_PLV: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits_PLV", logits_PLV)

    def forward(self, x_BL: Tensor, select_BL: Tensor | None = None, t_B: Tensor | None = None) -> Tensor:
        logits_BLV = self.logits_PLV[index_of(x_BL, self.logits_PLV.shape[2] + 1)]
        return logits_BLV if select_BL is None else logits_BLV[select_BL]

    def probabilities(self, x_L: tuple[int, ...]) -> np.ndarray:
        """(L, V) at one pattern."""
        return self(torch.tensor([x_L]))[0].double().softmax(-1).numpy()


def random_table(vocab_size: int, length: int, seed: int) -> TableNetwork:
    return TableNetwork(torch.randn((vocab_size + 1) ** length, length, vocab_size, generator=generator_of(seed)))


def exact_table(joint_X: np.ndarray, vocab_size: int, length: int) -> TableNetwork:
    """The exact conditionals p(x_i | shown tokens) of a law, for every pattern."""
    x_XL = all_sequences(vocab_size, length).numpy()
    patterns = itertools.product(range(vocab_size + 1), repeat=length)
    table = np.zeros(((vocab_size + 1) ** length, length, vocab_size))
    for k, pattern in enumerate(patterns):
        shown = [i for i, token in enumerate(pattern) if token < vocab_size]
        weight_X = joint_X * np.all(x_XL[:, shown] == np.array([pattern[i] for i in shown]), axis=1)
        for i in range(length):
            table[k, i] = np.bincount(x_XL[:, i], weights=weight_X, minlength=vocab_size) / weight_X.sum()
    return TableNetwork(torch.from_numpy(np.log(np.maximum(table, 1e-30))).float())


def nelbo_by_enumeration(table: TableNetwork, x_L: tuple[int, ...], vocab_size: int) -> float:
    """Continuous-time NELBO of one sequence, nats: every mask pattern with its integral over time in closed form.

    With k masked of L tokens: int -alpha' / (1 - alpha) (1 - alpha)^k alpha^(L - k) dt = (k - 1)! (L - k)! / L!,
    whatever the schedule (substitute alpha for t).
    """
    L, total = len(x_L), 0.0
    for masked in itertools.product((False, True), repeat=L):
        k = sum(masked)
        if k == 0:
            continue
        shown = tuple(vocab_size if hidden else token for hidden, token in zip(masked, x_L, strict=True))
        p_LV = table.probabilities(shown)
        nll = -sum(math.log(p_LV[i, x_L[i]]) for i in range(L) if masked[i])
        total += nll * math.factorial(k - 1) * math.factorial(L - k) / math.factorial(L)
    return total


def sampler_law(table: TableNetwork, alphas: list[float], vocab_size: int, length: int) -> np.ndarray:
    """Law (X,) of the factorised ancestral sampler, by pushing the law over masked patterns through each step."""
    law = {(vocab_size,) * length: 1.0}
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        rate, after = (alpha_s - alpha_t) / (1.0 - alpha_t), {}
        for pattern, mass in law.items():
            p_LV = table.probabilities(pattern)
            choices = [
                [(token, 1.0)]
                if token < vocab_size
                else [(v, rate * p_LV[i, v]) for v in range(vocab_size)] + [(vocab_size, 1.0 - rate)]
                for i, token in enumerate(pattern)
            ]
            for outcome in itertools.product(*choices):
                key = tuple(token for token, _ in outcome)
                after[key] = after.get(key, 0.0) + mass * math.prod(p for _, p in outcome)
        law = after
    return np.array([law.get(tuple(x), 0.0) for x in all_sequences(vocab_size, length).tolist()])


# ---- training -------------------------------------------------------------------------------------------------------
def job_of(
    method, folder: Path, steps: int = 40, progress: Callable[[str, int, int], None] | None = None,
    data: TokenData | None = None, lr: float = 3e-3, batch: int = 8, **train,
) -> Job:  # fmt: skip
    scale = ScaleConfig(steps=steps, batch=batch, lr=lr, length=method.problem.length)
    recipe = TrainConfig(
        **{"validations": 4, "valid_sequences": 8, "checkpoint_seconds": 1e9, "checkpoint_share": 1.0} | train
    )
    data = data or token_data(method.problem)
    report = progress or (lambda text, done, total: None)
    return Job(method, data, scale, recipe, Numerics("cpu", "float32"), 5, folder, report)
