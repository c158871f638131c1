"""VADD's sampler: the ancestral one, with a z of its prior for each call, or one z for all calls of a sample.

Shapes: N sequences, L tokens, D latent coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.samplers.noise import Noise
from baselines.vadd import VADD
from harness.config.fields import chosen
from harness.diffusion import ancestral, masked
from harness.nn.slices import Logits


@dataclass
class PriorOptions:
    calls: str = chosen("fresh", ("fresh", "fixed"))  # a z for each call, as it is trained, or one for all of them


class Prior(Noise):
    """K two-stage reverse steps; what is revealed in a step is tied together by its z."""

    Options = PriorOptions
    methods = VADD
    method: VADD

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """The bound is that of a fresh z in each call."""
        return self.options.calls == "fresh"

    @property
    def title(self) -> str:
        return self.method.title if self.bounded else f"{self.method.title}, one z for all calls"

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor:
        """As that of any path, with z recognised in the place of drawn: `log q(z) - log p(z)` is added, its mean the KL.

        So the mean of `exp(-path_nll)` over paths is the sampler's law, and the mean of `path_nll` its whole bound.
        """
        self.check_budget(nfe)
        m, cost_B = self.method, torch.zeros(len(x_BL), dtype=torch.float64, device=x_BL.device)
        kept_BD: Tensor | None = None

        def denoise(xt_BL: Tensor, select_BL: Tensor, t_B: Tensor) -> Logits:
            nonlocal kept_BD
            if kept_BD is None or self.bounded:
                kept_BD, ratio_B, _ = m.recognise(x_BL, xt_BL == m.problem.vocab_size, generator)
                cost_B.add_(ratio_B)
            return m.network(xt_BL, select_BL, kept_BD)

        alphas = masked.step_alphas(m.schedule, nfe)
        return ancestral.path_nll(denoise, x_BL, m.problem.vocab_size, alphas, generator) + cost_B
