"""Reveals the most certain positions first (MaskGIT's decoding, Chang et al. 2022, arXiv 2202.04200, section 3.2).

In call k a token is drawn at every masked position; those stay whose certainty, with Gumbel noise on its logarithm, is
largest, as many as the schedule says, and the others are masked again. The noise falls linearly to 0 at the last call, as
in MaskGIT's code. Without noise the order is greedy, and samples repeat themselves: read it with entropy and copy rate.

Certainty is the probability of the token that was drawn, or the margin between the two likeliest ones (Kim et al. 2025,
arXiv 2502.06768, section 4.2), which asks whether a position is settled and not whether its draw was a likely one.

Shapes: N sequences, L tokens, V symbols, M selected positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.interface import Draw, Sampler
from harness.nn.slices import Logits


@dataclass
class ConfidenceOptions:
    by: str = chosen("probability", ("probability", "margin"))  # what certainty is
    noise: float = ranged(1.0, 0)  # Gumbel temperature of the order at the first call; 0 is greedy


class Confidence(Sampler):
    """K calls; call k leaves `round(L alpha_k)` tokens revealed."""

    Options = ConfidenceOptions
    options: ConfidenceOptions
    methods = MaskedModel
    method: MaskedModel
    bounded = False

    @property
    def title(self) -> str:
        return f"{self.method.title}, {'confidence' if self.options.by == 'probability' else self.options.by}"

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        m, dtype = self.method, "float64"
        L, mask_id = m.problem.length, m.problem.vocab_size
        x_NL = torch.full((n, L), mask_id, dtype=torch.int64, device=generator.device)
        shown = [round(L * alpha) for alpha in masked.step_alphas(m.schedule, nfe)]
        for k in range(nfe):
            hidden_NL = x_NL == mask_id
            logits_MV = m.denoise(x_NL, hidden_NL, torch.full((n,), 1.0 - k / nfe, device=generator.device))
            token_M, dtype = masked.draw_tokens(logits_MV, generator, temperature)
            by_margin = self.options.by == "margin"
            certainty_M = log_margin(logits_MV, temperature) if by_margin else masked.log_p(logits_MV, token_M)
            certainty_M += self.options.noise * (1.0 - (k + 1) / nfe) * _gumbel(certainty_M.shape, generator)
            certainty_NL = torch.full(x_NL.shape, -math.inf, dtype=masked.DRAW_DTYPE, device=x_NL.device)
            certainty_NL[hidden_NL] = certainty_M
            drawn_NL = x_NL.masked_scatter(hidden_NL, token_M)
            keep_NL = most_certain(certainty_NL, shown[k + 1] - shown[k])
            x_NL = torch.where(keep_NL, drawn_NL, x_NL)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)


def log_margin(logits_MV: Tensor | Logits, temperature: float = 1.0) -> Tensor:
    """Logarithm of the difference between the two largest probabilities of each row, (M,) float64."""

    def margin(logits_RV: Tensor) -> Tensor:
        top_R2 = (logits_RV.to(masked.DRAW_DTYPE) / temperature).softmax(-1).topk(2, dim=-1).values
        return (top_R2[:, 0] - top_R2[:, 1]).clamp(min=1e-300).log()

    return masked.by_rows(margin, logits_MV)


def most_certain(certainty_NL: Tensor, count: int) -> Tensor:
    """Where the `count` largest values of each row are, (N, L) bool; of equal ones the first."""
    best_NC = certainty_NL.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(certainty_NL, dtype=torch.bool).scatter_(1, best_NC, True)


def _gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    u_M = torch.rand(shape, generator=generator, dtype=masked.DRAW_DTYPE, device=generator.device)
    return -torch.log(-torch.log(u_M.clamp(min=1e-300)))
