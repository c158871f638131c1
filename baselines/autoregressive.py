"""An autoregressive transformer of the same size: the scale's upper end, at one call for each token.

Shapes: B batch, L tokens, V symbols, N sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.diffusion.masked import draw_tokens
from harness.errors import BudgetError
from harness.interface import Bound, Draw, Loss, Method, Problem
from harness.nn.networks import TokenNetwork


@dataclass
class AutoregressiveOptions:
    pass


class Autoregressive(Method):
    """Left-to-right factorisation `p(x) = prod p(x_i | x_<i)`; the id after the vocabulary is the start symbol."""

    Options = AutoregressiveOptions
    title = "Autoregressive"
    sampler = "left-to-right"
    role = "reference"

    def __init__(self, problem: Problem, options: AutoregressiveOptions) -> None:
        super().__init__(problem, options)
        self.network = TokenNetwork(problem.shape, problem.vocab_size, causal=True)

    def networks(self) -> Mapping[str, nn.Module]:
        # Decoding steps go through `decode_next`, so the trunk is what is called once for each token.
        return {"token": self.network.trunk}

    def _nll(self, x_BL: Tensor) -> Tensor:
        start_B1 = torch.full_like(x_BL[:, :1], self.problem.vocab_size)
        logits_BLV = self.network(torch.cat((start_B1, x_BL[:, :-1]), dim=1))
        return F.cross_entropy(logits_BLV.flatten(0, 1), x_BL.flatten(), reduction="none").view(x_BL.shape).sum(1)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        total = self._nll(x_BL).mean() / x_BL.shape[1]
        return Loss(total, {"nll_nats_per_token": total.detach()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        return Bound(self._nll(x_BL).double(), "exact log-likelihood by the chain rule", exact=True)

    def budgets(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        return (self.problem.length,)

    def check_budget(self, nfe: int) -> None:
        if nfe != self.problem.length:
            raise BudgetError(
                f"nfe={nfe} cannot be met by {self.title}: it calls its network once for each token; use {self.problem.length}"
            )

    def sample(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        x_N = torch.full((n,), self.problem.vocab_size, dtype=torch.int64, device=generator.device)
        columns, caches, dtype = [], None, "float64"
        for i in range(nfe):
            logits_NV, caches = self.network.decode_next(x_N, i, caches)
            x_N, dtype = draw_tokens(logits_NV, generator, temperature)
            columns.append(x_N)
        return Draw(torch.stack(columns, dim=1), nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
