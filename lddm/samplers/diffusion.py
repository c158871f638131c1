"""SEQ's own sampler: the latent by Gaussian diffusion over the slots, then the tokens given it (LDDM, section 4).

Shapes: N sequences, S slots, D dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.errors import UserError
from lddm import gaussian
from lddm.latent import gaussian_noise
from lddm.latent_first import LatentFirst
from lddm.paths import latent_first_path
from lddm.seq import SEQ


@dataclass
class DiffusionOptions:
    latent_share: float = ranged(0.5, 0, 1)  # of a budget K that goes to K_z
    eta: float = ranged(1.0, 0, 1)  # 0 DDIM, 1 ancestral latent steps


class Diffusion(LatentFirst):
    """K_z calls of the latent network over S slots, then K_x calls of the decoder; both count in full."""

    Options = DiffusionOptions
    options: DiffusionOptions
    methods = SEQ
    method: SEQ

    def __init__(self, method: SEQ, options: DiffusionOptions) -> None:
        super().__init__(method, options)
        if not method.has_prior:
            raise UserError(
                "sampler diffusion needs a prior that learns; choose prior_share above 0, such as 0.3, or another sampler"
            )

    def latents(self, n: int, calls: int, generator: torch.Generator, temperature: float) -> Tensor:
        """z0 (N, S, D) in `calls` calls of the prior."""
        m, o = self.method, self.method.options
        z_NSD, previous = gaussian_noise((n, o.slots, o.dims), generator), None
        for step in latent_first_path(calls, 0):
            t_N = torch.full((n,), step.t_z, device=z_NSD.device)
            z0_hat = m.z0_hat(z_NSD, t_N, previous)
            previous = z0_hat if o.self_conditioning > 0 else None
            z_NSD = gaussian.latent_step(
                z_NSD, z0_hat, step.t_z, step.s_z, m.latent_schedule, self.options.eta, generator
            )
        return z_NSD
