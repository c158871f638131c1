"""The ancestral sampler of masked diffusion: reverse steps at equal distances in time (Sahoo et al. 2024, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.config.fields import NoOptions
from harness.diffusion import ancestral, masked
from harness.errors import UserError
from harness.interface import Draw


class Ancestral(ancestral.Filler):
    """K two-stage reverse steps from all masks; the last reveals every position that is still masked."""

    Options: type = NoOptions
    methods = MaskedModel
    method: MaskedModel

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def alphas(self, nfe: int) -> list[float]:
        """alpha at the ends of the steps, (K + 1) values from 0 to 1."""
        return masked.step_alphas(self.method.schedule, nfe)

    @property
    def denoiser(self) -> ancestral.Denoiser:
        """What is called once in each step."""
        return self.method.denoise

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor | None:
        self.check_budget(nfe)
        m = self.method
        return ancestral.path_nll(self.denoiser, x_BL, m.problem.vocab_size, self.alphas(nfe), generator)

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        self.check_budget(nfe)
        m = self.method
        if temperature != 1.0 and not m.accepts_temperature():
            raise UserError(
                f"temperature={temperature} cannot be met by {self.title}: it draws from the truth; use 1.0"
            )
        mask_id = m.problem.vocab_size
        start_NL = x_NL.masked_fill(hidden_NL, mask_id)
        x_NL, dtype = ancestral.sample(self.denoiser, start_NL, mask_id, self.alphas(nfe), generator, temperature)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
