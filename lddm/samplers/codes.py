"""The sampler of SEQ with a discrete latent: codes by masked diffusion, then the tokens given them.

Shapes: N sequences, S codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.diffusion import ancestral, masked
from lddm.latent_first import LatentFirst
from lddm.seq_discrete import SEQDiscrete


@dataclass
class CodesOptions:
    latent_share: float = ranged(0.2, 0, 1)  # of a budget K that goes to the codes, one call at least and S at most


class Codes(LatentFirst):
    """K_z calls of the prior over S codes, then K_x calls of the decoder; the temperature is that of both draws."""

    Options = CodesOptions
    options: CodesOptions
    methods: type = SEQDiscrete
    method: SEQDiscrete

    def split(self, nfe: int) -> tuple[int, int]:
        """(K_z, K_x); more calls than codes would reveal none."""
        latent, _ = super().split(nfe)
        latent = min(latent, self.method.options.slots)
        return latent, nfe - latent

    def latents(self, n: int, calls: int, generator: torch.Generator, temperature: float) -> Tensor:
        """Codes (N, S)."""
        m, o = self.method, self.method.options
        alphas = masked.step_alphas(m.schedule, calls)
        c_NS, _ = ancestral.sample(
            lambda c_NS, select_NS, t_N: m.prior(c_NS, m.mixture, select_NS),
            (n, o.slots), o.codes, alphas, generator, temperature,
        )  # fmt: skip
        return c_NS
