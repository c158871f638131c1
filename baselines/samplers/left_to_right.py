"""Draws an autoregressive model token by token: one call for each.

Shapes: N sequences, L tokens, V symbols.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from baselines.autoregressive import Autoregressive
from harness.config.fields import NoOptions
from harness.diffusion.masked import draw_tokens
from harness.errors import BudgetError
from harness.interface import Draw, Sampler


class LeftToRight(Sampler):
    """x_i ~ p(. | x_<i) for i = 1..L, with cached keys and values."""

    Options = NoOptions
    methods = Autoregressive
    method: Autoregressive

    def networks(self) -> Mapping[str, nn.Module]:
        # Decoding steps go through `decode_next`, so the trunk is what is called once for each token.
        return {"token": self.method.network.trunk}

    def budgets(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        return (self.method.problem.length,)

    def check_budget(self, nfe: int) -> None:
        length = self.method.problem.length
        if nfe != length:
            raise BudgetError(
                f"nfe={nfe} cannot be met by {self.title}: it calls its network once for each token; use {length}"
            )

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        x_N = torch.full((n,), self.method.problem.vocab_size, dtype=torch.int64, device=generator.device)
        columns, caches, dtype = [], None, "float64"
        for i in range(nfe):
            logits_NV, caches = self.method.network.decode_next(x_N, i, caches)
            x_N, dtype = draw_tokens(logits_NV, generator, temperature)
            columns.append(x_N)
        return Draw(torch.stack(columns, dim=1), nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
