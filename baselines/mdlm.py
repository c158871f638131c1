"""MDLM: masked diffusion with a factorised denoiser (Sahoo et al. 2024, arXiv 2406.07524).

Shapes: B batch, L tokens, N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.schedules import TOKEN_SCHEDULES
from harness.interface import Loss, Problem
from harness.nn.networks import TokenNetwork
from harness.nn.slices import Logits


@dataclass
class MDLMOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    loss: str = chosen("masked_mean", masked.LOSSES)  # see harness.diffusion.masked.MaskedTerms
    time_conditioning: bool = False
    width_factor: float = ranged(1.0, 0.1, 16)  # widens the trunk, for a baseline matched in parameters


class MDLM(MaskedModel):
    """Masked diffusion language model; the network sees only tokens (time is optional, as the posterior needs none)."""

    Options: type = MDLMOptions
    title = "MDLM"

    def __init__(self, problem: Problem, options: MDLMOptions) -> None:
        super().__init__(problem, options)
        self.network = self.make_network()

    def make_network(self) -> TokenNetwork:
        """The denoiser, new."""
        problem, options = self.problem, self.options
        step = 2 * problem.shape.heads
        width = max(step, round(problem.shape.width * options.width_factor / step) * step)
        shape = replace(problem.shape, width=width)
        return TokenNetwork(shape, problem.vocab_size, time=options.time_conditioning)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"token": self.network}

    def denoise(self, x_NL: Tensor, select_NL: Tensor, t_N: Tensor) -> Logits:
        return self.network(x_NL, select_NL, t_N)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """The chosen weighting of the NELBO (MDLM, eq. 10), nats per token."""
        terms = self.terms(x_BL, generator, self.largest_time)
        total = terms.loss(self.options.loss, x_BL.shape[1])
        return Loss(total, {"nelbo_nats_per_token": terms.nelbo_B.detach().mean() / x_BL.shape[1]})
