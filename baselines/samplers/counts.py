"""Draws a counted model left to right, without a table of probabilities.

With probability c(h) / (c(h) + T(h)) the next word is that of a uniformly chosen occurrence of the history h in the training
text, otherwise the shorter history decides: the law of `baselines.ngram`.

Shapes: N sequences, L tokens, V symbols.
"""

from __future__ import annotations

import numpy as np
import torch

from baselines.ngram import NGram
from harness.config.fields import NoOptions
from harness.errors import UserError
from harness.interface import Callless, Draw


class Counts(Callless):
    """No network is called; the temperature must be 1 (counts have no logits)."""

    Options = NoOptions
    methods = NGram
    method: NGram

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
