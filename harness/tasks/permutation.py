"""Permutation: every order of n symbols, equally likely; each token is independent of nothing and explained by nothing.

Shapes: N sequences, L = V = n tokens and symbols.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import Range
from harness.tasks import parts
from harness.tasks.base import Exact, ExactTask
from harness.tasks.source import TaskSource

LONGEST = 20


class Permutation(ExactTask):
    """Uniform over the n! permutations of n = L symbols; no cause makes the tokens independent but x itself."""

    name = "permutation"

    def __init__(self, length: int = 6) -> None:
        Range(2, LONGEST).check("scale.length", length)
        self.length = self.vocab_size = length

    @cached_property
    def exact(self) -> Exact:
        """H = log n!, total correlation = n log n - log n!."""
        entropy = math.lgamma(self.length + 1)
        return Exact(entropy, self.length * math.log(self.length) - entropy)

    @property
    def one_step_validity(self) -> float:
        """n! / n^n: the share of permutations among draws from the product of the true marginals."""
        return math.factorial(self.length) / self.length**self.length

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.permuted(np.tile(np.arange(self.length, dtype=np.int64), (n, 1)), axis=1)

    def log_prob(self, x_NL: Tensor) -> Tensor:
        is_valid_N = (parts.one_hot(x_NL, None, self.vocab_size).sum(1) == 1).all(1)
        log_p_N = torch.full(is_valid_N.shape, -self.exact.entropy, dtype=torch.float64, device=x_NL.device)
        return log_p_N.masked_fill(~is_valid_N, -torch.inf)

    def conditionals(self, x_NL: Tensor, known_NL: Tensor) -> Tensor:
        """See `ExactTask.conditionals`: uniform over the symbols that no known position has.

        That is also the answer for known symbols that clash: at least one symbol is free wherever a position is.
        """
        used_NV = parts.one_hot(x_NL, known_NL, self.vocab_size).sum(1) > 0
        free_N1 = (~used_NV).sum(1, keepdim=True).clamp(min=1).double()
        log_p_NV = (-free_N1.log()).masked_fill(used_NV, -torch.inf)
        return parts.with_point_masses(log_p_NV[:, None].expand(-1, self.length, -1), x_NL, known_NL)

    def statistics(self, x_NL: Tensor) -> Tensor:
        """Which symbol is where: one-hot codes, flat."""
        return parts.one_hot(x_NL, None, self.vocab_size).flatten(1)

    def support(self) -> Tensor | None:
        if math.factorial(self.length) > parts.ENUMERABLE:
            return None
        return torch.tensor(list(itertools.permutations(range(self.length))))


class PermutationData(TaskSource):
    """Permutations of `scale.length` symbols; the number of symbols is the length."""

    def task(self, length: int) -> Permutation:
        return Permutation(length)

    def facts(self, task: ExactTask) -> dict[str, float]:
        assert isinstance(task, Permutation)
        return {"one_step_validity": task.one_step_validity}
