"""Draws an autoregressive model token by token: one call for each.

Shapes: N sequences, L tokens, V symbols.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.autoregressive import Autoregressive
from harness.config.fields import NoOptions
from harness.diffusion import ancestral
from harness.diffusion.masked import draw_tokens
from harness.errors import BudgetError, UserError
from harness.interface import Draw, Sampler


class LeftToRight(Sampler):
    """x_i ~ p(. | x_<i) for i = 1..L, with cached keys and values."""

    Options = NoOptions
    methods = Autoregressive
    method: Autoregressive
    fills_prefix = True

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
        x_NL = ancestral.blank(n, self.method.problem.length, self.method.problem.vocab_size, generator.device)
        return self.fill(x_NL, torch.ones_like(x_NL, dtype=torch.bool), nfe, generator, temperature)

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        """What is given is read in the place of what would be drawn: exact where it is the beginning of a sequence."""
        self.check_budget(nfe)
        if (hidden_NL[:, :-1] & ~hidden_NL[:, 1:]).any():
            raise UserError(
                f"{self.title} can hold the beginning of a text fixed and nothing else; use study.prompt=prefix"
            )
        x_N = torch.full((len(x_NL),), self.method.problem.vocab_size, dtype=torch.int64, device=generator.device)
        columns, caches, dtype = [], None, "float64"
        for i in range(nfe):
            logits_NV, caches = self.method.network.decode_next(x_N, i, caches)
            drawn_N, dtype = draw_tokens(logits_NV, generator, temperature)
            x_N = torch.where(hidden_NL[:, i], drawn_N, x_NL[:, i])
            columns.append(x_N)
        return Draw(torch.stack(columns, dim=1), nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
