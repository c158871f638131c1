"""Draws a counted model left to right, without a table of probabilities.

With probability c(h) / (c(h) + T(h)) the next word is that of a uniformly chosen occurrence of the history h in the training
text, otherwise the shorter history decides: the law of `baselines.ngram`.

Shapes: N sequences, L tokens, V symbols.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from baselines.ngram import NGram
from harness.config.fields import NoOptions
from harness.errors import BudgetError, UserError
from harness.interface import Draw, Sampler


class Counts(Sampler):
    """No network is called; the temperature must be 1 (counts have no logits)."""

    Options = NoOptions
    methods = NGram
    method: NGram

    def networks(self) -> Mapping[str, nn.Module]:
        return {}

    def budgets(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        return (0,)

    def check_budget(self, nfe: int) -> None:
        if nfe != 0:
            raise BudgetError(f"nfe={nfe} cannot be met by {self.title}: it has no network to call; use 0")

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        if temperature != 1.0:
            raise UserError(f"temperature={temperature} cannot be met by {self.title}: it draws from counts; use 1.0")
        m = self.method
        L, V = m.problem.length, m.problem.vocab_size
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        rng = np.random.default_rng(seed)
        x_NL = np.zeros((n, L), dtype=np.int64)
        for i in range(L):
            todo = np.ones(n, dtype=bool)
            word = rng.integers(V, size=n)
            for length in range(min(i, m.order - 1), -1, -1):
                level = m.levels[length]
                start, count, distinct = level.look_up(m.history(x_NL, i, length))
                use = todo & (rng.random(n) * (count + distinct) < count)
                pick = start + (rng.random(n) * count).astype(np.int64)
                word = np.where(use, level.pair[np.minimum(pick, len(level.pair) - 1)] % V, word)
                todo &= ~use
            x_NL[:, i] = word
        return Draw(torch.from_numpy(x_NL).to(generator.device), nfe_latent=0, nfe_token=0)
