"""What samplers of SEQ have in common: K_z calls for the latent, then K_x of the token network given it.

Shapes: N sequences.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.diffusion.ancestral import Denoiser
from harness.interface import Draw, Sampler
from lddm.paths import split_calls


class LatentFirst(Sampler):
    """One with an option `latent_share`, on a method with a network `prior`."""

    method: Any
    options: Any

    def __init__(self, method: Any, options: Any) -> None:
        super().__init__(method, options)
        _ = method.prior  # a method that has none says so here, before it is trained

    def networks(self) -> Mapping[str, nn.Module]:
        return {"latent": self.method.prior, "token": self.method.token_network()}

    def split(self, nfe: int) -> tuple[int, int]:
        """(K_z, K_x) of a budget; raises `BudgetError`."""
        return split_calls(nfe, self.options.latent_share, self.title)

    def check_budget(self, nfe: int) -> None:
        self.split(nfe)

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        latent_calls, token_calls = self.split(nfe)
        latent = self.latents(n, latent_calls, generator, temperature)
        x_NL, dtype = self.method.draw_tokens(latent, token_calls, generator, temperature, self.denoiser(latent))
        return Draw(x_NL, nfe_latent=latent_calls, nfe_token=token_calls, draw_dtype=dtype)

    def denoiser(self, latent: Tensor) -> Denoiser:
        """That of the tokens, beside a clean latent."""
        return self.method.denoiser(latent)

    @abstractmethod
    def latents(self, n: int, calls: int, generator: torch.Generator, temperature: float) -> Tensor:
        """The latents of `n` sequences in `calls` calls; only discrete ones have a temperature."""
