"""p(z0) in one network call: noise in, a latent out, trained so that its outputs have the law of z0.

A diffusion's network returns the mean of z0 when it is called on pure noise, so that one Gaussian step is useless. This one
learns from a distance between sets of latents (`lddm.kernel_score`), which needs no teacher and no density.

What was found to matter (docs/log.md): it draws the mean mu of q(z0 | x) and adds the encoder's noise itself, so that what
it has to learn are points and not points in a fog; it has more noise coordinates than latent ones, to choose and to vary
apart; and neighbouring slots are compared in short runs as well as all slots at once, since a distance over all coordinates
hardly sees what goes on between two of them.

Shapes: N sequences, S slots, D dims, E noise coordinates of each slot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.nn.transformer import Trunk, TrunkShape
from lddm.kernel_score import distance
from lddm.latent import gaussian_noise
from lddm.networks import slot_positions


class OneCallNetwork(nn.Module):
    """mu (N, S, D) float32 from noise (N, S, E).

    A continuous map cannot tear the normal law into islands; with `signs` it also sees the signs of its noise, across which
    it may jump.
    """

    def __init__(self, shape: TrunkShape, slots: int, dims: int, length: int, noise: int, signs: bool) -> None:
        super().__init__()
        self.slots, self.noise, self.signs, self.length = slots, noise, signs, length
        self.slot = nn.Parameter(torch.randn(slots, shape.width) * 0.5)
        self.noise_in = nn.Linear(2 * noise if signs else noise, shape.width)
        self.trunk = Trunk(shape)
        self.mean_out = nn.Linear(shape.width, dims)
        # Not zero: equal outputs for all noise are a saddle of the distance, and cost the first hundreds of steps.
        nn.init.normal_(self.mean_out.weight, std=0.1)
        nn.init.zeros_(self.mean_out.bias)

    def forward(self, noise_NSE: Tensor) -> Tensor:
        seen = torch.cat((noise_NSE, noise_NSE.sign()), dim=-1) if self.signs else noise_NSE
        h = self.noise_in(seen.to(self.noise_in.weight.dtype)) + self.slot
        h, _ = self.trunk(h, slot_positions(self.slots, self.length, noise_NSE.device))
        return self.mean_out(h).float()

    def draw(self, n: int, scale: float, generator: torch.Generator) -> Tensor:
        """z0 = mu + scale eps, (n, S, D), in one call; `scale` is the encoder's noise."""
        mean_NSD = self(gaussian_noise((n, self.slots, self.noise), generator))
        return mean_NSD + scale * gaussian_noise(mean_NSD.shape, generator)


def one_call_loss(
    network: OneCallNetwork, z0_NSD: Tensor, scale: float, window: int, generator: torch.Generator
) -> Tensor:
    """Distance between the law of `OneCallNetwork.draw` and that of z0, on a batch of each, a scalar.

    Over all slots, plus the mean over all runs of `window` neighbouring slots; the second part is left out where `window`
    is 0 or not below S. (One run drawn anew in each step costs less and learns far less: the distances are small
    differences of large means.)
    """
    drawn_NSD, S = network.draw(len(z0_NSD), scale, generator), z0_NSD.shape[1]
    total = distance(drawn_NSD, z0_NSD, scale)
    if not 0 < window < S:
        return total
    runs = [slice(first, first + window) for first in range(S - window + 1)]
    return total + sum(distance(drawn_NSD[:, run], z0_NSD[:, run], scale) for run in runs) / len(runs)
