"""Codes, then the tokens by the student of one round of SDTT.

Shapes: N sequences, S codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from harness.config.fields import ranged
from harness.diffusion.ancestral import Denoiser
from lddm.samplers.codes import Codes, CodesOptions
from lddm.seq_distilled import SEQDistilled


@dataclass
class DistilledCodesOptions(CodesOptions):
    round: int = ranged(0, 0)  # 0: the teacher before all rounds


class DistilledCodes(Codes):
    """The token network has the weights that it had at the end of a round."""

    Options = DistilledCodesOptions
    options: DistilledCodesOptions
    methods = SEQDistilled
    method: SEQDistilled
    bounded = False  # the bound is that of the last student

    def __init__(self, method: SEQDistilled, options: DistilledCodesOptions) -> None:
        super().__init__(method, options)
        self.network = method.checked_round(options.round)

    @property
    def title(self) -> str:
        return f"{self.method.title}, round {self.options.round}"

    def networks(self) -> Mapping[str, nn.Module]:
        return {"latent": self.method.prior, "token": self.network}

    def denoiser(self, latent: Tensor) -> Denoiser:
        return self.method.denoiser_of(self.network, latent)
