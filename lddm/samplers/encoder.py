"""A probe: tokens given latents of training sequences, which is what a perfect model of the latent would give.

It is no model of the data: its row says what the latent's own model costs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from harness.config.fields import NoOptions
from harness.interface import Draw, Sampler
from lddm.latent_model import LatentModel


class Encoder(Sampler):
    """K calls of the token network beside latents that are given."""

    Options = NoOptions
    methods = LatentModel
    method: LatentModel
    role = "probe"
    bounded = False

    def __init__(self, method: LatentModel, options: NoOptions) -> None:
        super().__init__(method, options)
        method.check_encoded()

    @property
    def title(self) -> str:
        return self.method.encoder_title

    def networks(self) -> Mapping[str, nn.Module]:
        return {"token": self.method.token_network()}

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        latent = self.method.encoded(n, generator)
        x_NL, dtype = self.method.draw_tokens(latent, nfe, generator, temperature)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
