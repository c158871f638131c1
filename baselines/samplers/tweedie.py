"""SEDD's analytic sampler: the reverse step that Tweedie's formula gives for ratios (Lou et al. 2023, section 4.2).

In a step t -> s a masked position takes token y with probability `exp(l_y) (alpha_s - alpha_t) / (1 - alpha_t)` and stays
masked with what is left to 1. Where the ratios sum to 1 this is the ancestral step of masked diffusion. The last step
leaves no mask: tokens are then drawn by their ratios alone, and no call is added for it.

Shapes: N sequences, L tokens, V symbols, M masked positions in row-major order, R of them in a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from baselines.sedd import SEDD
from harness.config.fields import NoOptions
from harness.diffusion import ancestral, masked
from harness.interface import Draw


class Tweedie(ancestral.Filler):
    """K steps, each of one call, from all masks."""

    Options = NoOptions
    methods = SEDD
    method: SEDD

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        self.check_budget(nfe)
        m, dtype = self.method, "float64"
        x_NL = x_NL.masked_fill(hidden_NL, m.problem.vocab_size)
        for k, (alpha_t, alpha_s) in enumerate(pairwise(masked.step_alphas(m.schedule, nfe))):
            hidden_NL = x_NL == m.problem.vocab_size
            t_N = torch.full((len(x_NL),), 1.0 - k / nfe, device=x_NL.device)
            logits_MV = m.ratios(x_NL, hidden_NL, t_N)
            rate = (alpha_s - alpha_t) / (1.0 - alpha_t)
            u_M = torch.rand(len(logits_MV), generator=generator, dtype=masked.DRAW_DTYPE, device=x_NL.device)
            total_M = masked.by_rows(lambda log_RV: log_RV.double().exp().sum(-1), logits_MV)
            token_M, dtype = masked.draw_tokens(logits_MV, generator, temperature)
            reveal_M = (u_M < rate * total_M) | (alpha_s == 1.0)
            x_NL[hidden_NL] = torch.where(reveal_M, token_M, m.problem.vocab_size)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
