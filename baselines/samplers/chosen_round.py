"""The ancestral sampler on the round of SDTT that serves a budget best (`harness.diffusion.chosen_round`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.samplers.ancestral import Ancestral
from baselines.sdtt import SDTT
from harness.diffusion import ancestral
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.chosen_round import ChoosesRound
from harness.interface import Draw


class ChosenRound(ChoosesRound, Ancestral):
    """For each budget and temperature one of the networks that the rounds have left, the teacher among them."""

    methods = SDTT
    method: SDTT

    def networks(self) -> Mapping[str, nn.Module]:
        return {f"round {r}": self.method.network_of(r) for r in range(self.method.options.rounds + 1)}

    @property
    def denoiser(self) -> Denoiser:
        return self.method.network_of(self._round)

    def draw_with_round(self, n: int, nfe: int, generator: torch.Generator, temperature: float) -> Draw:
        p = self.method.problem
        x_NL = ancestral.blank(n, p.length, p.vocab_size, generator.device)
        return Ancestral.fill(self, x_NL, x_NL == p.vocab_size, nfe, generator, temperature)

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor | None:
        self.prepare(nfe, 1.0, x_BL.device)
        return super().path_nll(x_BL, nfe, generator)
