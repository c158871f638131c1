"""The ancestral sampler with a nucleus: tokens are drawn from the smallest set that holds a share p of x0's probability.

Holtzman et al. 2020 (arXiv 1904.09751), section 3.1, applied to the prediction of x0 and never to the posterior that holds
the mask's probability. The token that crosses p stays in the set, so that it is never empty.

Shapes: N sequences, L tokens, V symbols, M selected positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.samplers.ancestral import Ancestral
from harness.config.fields import ranged
from harness.diffusion import ancestral
from harness.diffusion.masked import DRAW_DTYPE
from harness.interface import Draw
from harness.nn.slices import Logits


@dataclass
class TopPOptions:
    p: float = ranged(0.9, 0, 1, above=True)  # share of the probability that is kept; 1 keeps all


def nucleus(logits_RV: Tensor, p: float, temperature: float = 1.0) -> Tensor:
    """The logits (R, V), minus infinity outside of the nucleus of each row.

    The nucleus holds the likeliest tokens up to and with the one at which their sum reaches `p`; of equal ones the first.
    """
    p_RV = (logits_RV.to(DRAW_DTYPE) / temperature).softmax(-1)
    ranked_RV, order_RV = p_RV.sort(dim=-1, descending=True, stable=True)
    before_RV = ranked_RV.cumsum(-1) - ranked_RV
    outside_RV = torch.empty_like(before_RV, dtype=torch.bool).scatter_(1, order_RV, before_RV >= p)
    return logits_RV.masked_fill(outside_RV, -math.inf)


class TopP(Ancestral):
    """Reverse steps of the ancestral sampler whose tokens come from the nucleus; the temperature is applied before it."""

    Options = TopPOptions
    options: TopPOptions
    bounded = False

    @property
    def title(self) -> str:
        return f"{self.method.title}, top-p {self.options.p:g}"

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> None:
        """None: outside of the nuclei it is infinite."""

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        self.check_budget(nfe)
        m, mask_id = self.method, self.method.problem.vocab_size

        def denoise(x_NL: Tensor, select_NL: Tensor, t_N: Tensor) -> Logits:
            logits_MV = m.denoise(x_NL, select_NL, t_N)
            return Logits.of(logits_MV).then(lambda logits_RV: nucleus(logits_RV, self.options.p, temperature))

        start_NL = x_NL.masked_fill(hidden_NL, mask_id)
        x_NL, dtype = ancestral.sample(denoise, start_NL, mask_id, self.alphas(nfe), generator, temperature)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
