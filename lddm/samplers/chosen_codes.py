"""Codes, then the tokens by the round of SDTT that serves a budget best (`harness.diffusion.chosen_round`).

Shapes: N sequences, S codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.diffusion.ancestral import Denoiser
from harness.diffusion.chosen_round import ChoosesRound
from harness.interface import Draw
from lddm.samplers.codes import Codes
from lddm.seq_distilled import SEQDistilled


class ChosenCodes(ChoosesRound, Codes):
    """The token network is that of one round, the teacher among them; the prior over codes is the same in all."""

    methods = SEQDistilled
    method: SEQDistilled

    def networks(self) -> Mapping[str, nn.Module]:
        m = self.method
        return {"latent": m.prior} | {f"round {r}": m.network_of(r) for r in range(m.options.rounds + 1)}

    def denoiser(self, latent: Tensor) -> Denoiser:
        return self.method.denoiser_of(self.method.network_of(self._round), latent)

    def draw_with_round(self, n: int, nfe: int, generator: torch.Generator, temperature: float) -> Draw:
        return Codes.draw(self, n, nfe, generator, temperature)
