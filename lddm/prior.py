"""p(z0) of SEQ by Gaussian diffusion over the slots.

Shapes: B batch, S slots, D dims.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.diffusion.schedules import stratified_times
from lddm import gaussian
from lddm.latent import gaussian_noise, latent_mse, predicted_z0
from lddm.latent_schedule import LatentSchedule
from lddm.networks import LatentNetwork


def z0_hat(
    network: LatentNetwork, zt_BSD: Tensor, t_B: Tensor, previous: Tensor | None, schedule: LatentSchedule, kind: str
) -> Tensor:
    """The network's estimate of z0; `kind` is what it predicts, "x0" or "v"."""
    return predicted_z0(network(zt_BSD, t_B.float(), previous), zt_BSD, t_B, schedule, kind)


def diffusion_loss(
    network: LatentNetwork,
    z0_BSD: Tensor,
    schedule: LatentSchedule,
    kind: str,
    self_conditioning: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error at stratified times, a scalar; a share of the batch sees the network's own first estimate."""
    t_B = stratified_times(z0_BSD.shape[0], generator)
    zt_BSD = gaussian.diffuse(z0_BSD, t_B, schedule, gaussian_noise(z0_BSD.shape, generator))
    previous = None
    if self_conditioning > 0:
        keep_B = torch.rand(len(t_B), generator=generator, device=zt_BSD.device) < self_conditioning
        with torch.no_grad():
            first = z0_hat(network, zt_BSD, t_B, None, schedule, kind)
        previous = torch.where(keep_B[:, None, None], first, 0.0)
    out = network(zt_BSD, t_B.float(), previous)
    return latent_mse(out, z0_BSD, zt_BSD, t_B, schedule, kind).mean()
