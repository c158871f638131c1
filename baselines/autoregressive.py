"""An autoregressive transformer of the same size: the scale's upper end, at one call for each token.

Shapes: B batch, L tokens, V symbols, M = B L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.config.fields import NoOptions
from harness.diffusion.masked import token_nll
from harness.interface import Bound, Loss, Method, Problem
from harness.nn.networks import TokenNetwork


class Autoregressive(Method):
    """Left-to-right factorisation `p(x) = prod p(x_i | x_<i)`; the id after the vocabulary is the start symbol."""

    Options = NoOptions
    title = "Autoregressive"
    role = "reference"

    def __init__(self, problem: Problem, options: NoOptions) -> None:
        super().__init__(problem, options)
        self.network = TokenNetwork(problem.shape, problem.vocab_size, causal=True)

    def _nll(self, x_BL: Tensor) -> Tensor:
        start_B1 = torch.full_like(x_BL[:, :1], self.problem.vocab_size)
        logits_MV = self.network(torch.cat((start_B1, x_BL[:, :-1]), dim=1))
        return token_nll(logits_MV, x_BL.flatten()).view(x_BL.shape).sum(1)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        total = self._nll(x_BL).mean() / x_BL.shape[1]
        return Loss(total, {"nll_nats_per_token": total.detach()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        return Bound(self._nll(x_BL).double(), "exact log-likelihood by the chain rule", exact=True)
