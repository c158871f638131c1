"""The ancestral sampler of a masked model with a noise input: its noise stays for all calls of a sample, or is fresh in each.

Shapes: N sequences, L tokens, D noise coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from baselines.noise_mdlm import NoiseMDLM, NoiseModel
from harness.config.fields import chosen
from harness.diffusion import ancestral, masked
from harness.interface import Draw
from harness.nn.slices import Logits


@dataclass
class NoiseOptions:
    calls: str = chosen("fixed", ("fixed", "fresh"))  # one noise for all calls of a sample, or one for each


class Noise(ancestral.Filler):
    """K two-stage reverse steps; what is revealed in a step is tied together by its noise."""

    Options: type = NoiseOptions
    options: Any
    methods: type = NoiseMDLM
    method: NoiseModel

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """The bound is that of one noise for a sample."""
        return self.options.calls == "fixed"

    @property
    def title(self) -> str:
        return self.method.title if self.options.calls == "fixed" else f"{self.method.title}, fresh in each call"

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def _denoiser(self, n: int, generator: torch.Generator) -> ancestral.Denoiser:
        kept_ND = self.method.noise(n, generator)

        def denoise(x_NL: Tensor, select_NL: Tensor, t_N: Tensor) -> Logits:
            fixed = self.options.calls == "fixed"
            return self.method.network(x_NL, select_NL, kept_ND if fixed else self.method.noise(n, generator))

        return denoise

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor:
        """A path is the noise and what is revealed in which step: both are blind to the tokens."""
        self.check_budget(nfe)
        alphas = masked.step_alphas(self.method.schedule, nfe)
        denoiser = self._denoiser(len(x_BL), generator)
        return ancestral.path_nll(denoiser, x_BL, self.method.problem.vocab_size, alphas, generator)

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        """The noise is drawn from its prior, blind to what is given."""
        self.check_budget(nfe)
        m, mask_id = self.method, self.method.problem.vocab_size
        alphas, denoiser = masked.step_alphas(m.schedule, nfe), self._denoiser(len(x_NL), generator)
        start_NL = x_NL.masked_fill(hidden_NL, mask_id)
        x_NL, dtype = ancestral.sample(denoiser, start_NL, mask_id, alphas, generator, temperature)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
