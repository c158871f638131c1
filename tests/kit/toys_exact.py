"""Tasks small enough to be written out in full, the exact law of a sampler by its paths, and what metrics need around them.

Shapes: N sequences, L tokens, V symbols (id V is the mask), X = V^L all sequences, K steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.data.base import TokenData
from harness.interface import Problem
from harness.metrics.base import Samples, ScoreContext
from harness.tasks.base import Exact, ExactTask
from harness.tasks.templates import Templates
from tests.kit.toys import all_sequences, index_of, random_joint, tiny_problem

SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyz"


class TableTask(ExactTask):
    """A law (X,) over all sequences, in the order of `tests.kit.toys.index_of`; every answer is a sum over the table."""

    name = "table"

    def __init__(self, joint_X: np.ndarray, vocab_size: int, length: int) -> None:
        self.vocab_size, self.length = vocab_size, length
        self.joint_X = torch.from_numpy(np.asarray(joint_X, dtype=np.float64))
        self.x_XL = all_sequences(vocab_size, length)
        self.hot_XLV = torch.nn.functional.one_hot(self.x_XL, vocab_size).double()

    @property
    def marginal_LV(self) -> Tensor:
        return torch.einsum("x,xlv->lv", self.joint_X, self.hot_XLV)

    @property
    def exact(self) -> Exact:
        entropy = torch.special.entr(self.joint_X).sum().item()
        return Exact(entropy, torch.special.entr(self.marginal_LV).sum().item() - entropy)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self.x_XL.numpy()[rng.choice(len(self.joint_X), size=n, p=self.joint_X.numpy())]

    def log_prob(self, x_NL: Tensor) -> Tensor:
        return self.joint_X.log()[index_of(x_NL, self.vocab_size)]

    def conditionals(self, x_NL: Tensor, known_NL: Tensor) -> Tensor:
        agrees_NX = ((self.x_XL[None] == x_NL[:, None]) | ~known_NL[:, None]).all(2)
        weight_NX = agrees_NX.double() * self.joint_X
        total_N = weight_NX.sum(1)
        p_NLV = torch.einsum("nx,xlv->nlv", weight_NX, self.hot_XLV) / total_N.clamp(min=1e-300)[:, None, None]
        p_NLV = torch.where(total_N[:, None, None] > 0, p_NLV, self.marginal_LV)
        hot_NLV = torch.nn.functional.one_hot(x_NL.clamp(max=self.vocab_size - 1), self.vocab_size).double()
        return torch.where(known_NL[..., None], hot_NLV, p_NLV).log()

    def statistics(self, x_NL: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x_NL, self.vocab_size).flatten(1).double()

    def support(self) -> Tensor | None:
        return self.x_XL[self.joint_X > 0]


def table_task(vocab_size: int = 3, length: int = 4, seed: int = 0) -> TableTask:
    """A random law, every probability above 0."""
    return TableTask(random_joint(vocab_size, length, seed), vocab_size, length)


def exact_problem(task: ExactTask | None = None) -> Problem:
    """A tiny problem with its truth; by default that of `tiny_problem()`'s size, every sequence possible."""
    problem = tiny_problem() if task is None else tiny_problem(task.vocab_size, task.length)
    task = task or Templates(problem.length, classes=3, symbols=problem.vocab_size, accuracy=0.6)
    return dataclasses.replace(problem, truth=task)


Conditionals = Callable[[Tensor, Tensor], Tensor]


def enumerated_paths(conditionals: Conditionals, x_L: Tensor, alphas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Probability and `-log q(x | path)` of each of the K^L paths; `conditionals` is that of `ExactTask`.

    Each position is revealed in step k with probability alpha_{k+1} - alpha_k, independently of the others.
    """
    share_K = np.diff(alphas)
    probability, nll = [], []
    for steps in itertools.product(range(len(share_K)), repeat=len(x_L)):
        step_L, total = torch.tensor(steps), 0.0
        for k in set(steps):
            log_p_LV = conditionals(x_L[None], (step_L < k)[None])[0]
            total -= sum(log_p_LV[i, x_L[i]].item() for i in range(len(x_L)) if steps[i] == k)
        probability.append(math.prod(share_K[k] for k in steps))
        nll.append(total)
    return np.array(probability), np.array(nll)


def law_by_paths(conditionals: Conditionals, x_XL: Tensor, alphas: list[float]) -> np.ndarray:
    """q_K(x) of each sequence, exactly."""
    found = (enumerated_paths(conditionals, x_L, alphas) for x_L in x_XL)
    return np.array([(p * np.exp(-nll)).sum() for p, nll in found])


# ---- around the metrics and the judge -------------------------------------------------------------------------------
def decode(ids) -> str:
    return "".join(SYMBOLS[int(i)] for i in ids)


def data_of(task: ExactTask | None, rows: int = 64, vocab_size: int = 3, length: int = 4) -> TokenData:
    """Splits of `rows` draws from the task (zeros where there is none)."""
    if task is not None:
        vocab_size, length = task.vocab_size, task.length
    splits = {
        name: np.zeros((rows, length), np.int64) if task is None else task.sample(rows, np.random.default_rng(k))
        for k, name in enumerate(("train", "valid", "test"))
    }
    return TokenData("toy", vocab_size, length, splits, "fingerprint-of-toy", decode, task=task)


def samples_of(x_NL: np.ndarray) -> Samples:
    return Samples(np.asarray(x_NL), [decode(row) for row in np.asarray(x_NL).tolist()])


def context_of(task: ExactTask | None, cache: Path, n: int = 64, seed: int = 3) -> ScoreContext:
    """A reference set of n draws from the task."""
    data = data_of(task, n)
    return ScoreContext(data, samples_of(data.splits["test"]), None, cache, seed)
