"""The ancestral sampler on the student of one round of SDTT: which round serves a budget best is read off their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from baselines.samplers.ancestral import Ancestral
from baselines.sdtt import SDTT
from harness.config.fields import ranged
from harness.diffusion.ancestral import Denoiser


@dataclass
class DistilledOptions:
    round: int = ranged(0, 0)  # 0: the teacher before all rounds


class Distilled(Ancestral):
    """One network, with the weights that it had at the end of a round."""

    Options = DistilledOptions
    options: DistilledOptions
    methods = SDTT
    method: SDTT
    bounded = False  # the bound is that of the last student

    def __init__(self, method: SDTT, options: DistilledOptions) -> None:
        super().__init__(method, options)
        method.checked_round(options.round)

    @property
    def title(self) -> str:
        return f"{self.method.title}, round {self.options.round}"

    def networks(self) -> Mapping[str, nn.Module]:
        return {"token": self.method.network_of(self.options.round)}

    @property
    def denoiser(self) -> Denoiser:
        return self.method.network_of(self.options.round)
