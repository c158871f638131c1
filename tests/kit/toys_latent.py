"""A world with a latent whose perfect networks are finite sums, as stand-ins for the encoder, FUJI's network and SEQ's.

Shapes: B sequences, L tokens, V symbols (id V is the mask), X = V^L all sequences; one slot of one dim, z (B, 1, 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lddm.gaussian import LatentSchedule
from tests.kit.toys import all_sequences, index_of


class LatentWorld:
    """x ~ joint, z0 | x ~ N(mean_x, noise^2), one-dimensional: everything a perfect network would say is a finite sum.

    `mean_X` should have mean 0 and variance 1 under the joint, as the standardised encoder's output has.
    """

    def __init__(self, joint_X: np.ndarray, mean_X: np.ndarray, noise: float, vocab_size: int, length: int) -> None:
        self.V, self.L, self.noise = vocab_size, length, noise
        self.x_XL = all_sequences(vocab_size, length)
        self.joint_X, self.mean_X = torch.from_numpy(joint_X), torch.from_numpy(mean_X)

    def posterior(self, x_BL: Tensor, z_B: Tensor, a_B: Tensor, sigma_B: Tensor) -> Tensor:
        """p(x | shown tokens, z_t), (B, X) float64, for z_t = a z0 + sigma eps."""
        agrees_BX = ((x_BL[:, None, :] == self.x_XL) | (x_BL[:, None, :] == self.V)).all(-1)
        var_B1 = (a_B**2 * self.noise**2 + sigma_B**2)[:, None]
        log_BX = self.joint_X.log() - 0.5 * (z_B[:, None] - a_B[:, None] * self.mean_X) ** 2 / var_B1
        return log_BX.masked_fill(~agrees_BX, -torch.inf).softmax(-1)

    def token_logits(self, posterior_BX: Tensor) -> Tensor:
        """log p(x_i | ...), (B, L, V) float32."""
        one_hot_XLV = nn.functional.one_hot(self.x_XL, self.V).double()
        return torch.einsum("bx,xlv->blv", posterior_BX, one_hot_XLV).clamp(min=1e-30).log().float()

    def z0_mean(self, posterior_BX: Tensor, z_B: Tensor, a_B: Tensor, sigma_B: Tensor) -> Tensor:
        """E[z0 | shown tokens, z_t], (B,) float64: each component's posterior mean, by Bayes' rule for Gaussians."""
        s2 = self.noise**2
        gain_B1 = (a_B * s2 / (a_B**2 * s2 + sigma_B**2))[:, None]
        each_BX = self.mean_X + gain_B1 * (z_B[:, None] - a_B[:, None] * self.mean_X)
        return (posterior_BX * each_BX).sum(1)


class WorldEncoder(nn.Module):
    """Stand-in for `LatentEncoder`: mean by table, fixed noise."""

    def __init__(self, world: LatentWorld) -> None:
        super().__init__()
        self.world, self.noise = world, world.noise

    def sample(self, x_BL: Tensor, generator: torch.Generator) -> Tensor:
        mean_B = self.world.mean_X[index_of(x_BL, self.world.V)]
        return (mean_B + self.noise * torch.randn(len(x_BL), generator=generator, dtype=torch.float64)).view(-1, 1, 1)


class WorldJoint(nn.Module):
    """Stand-in for `JointNetwork` that knows the world: exact p(x_i | x_t, z_t), and exact E[z0 | x_t, z_t] as output.

    `blind` makes the token half ignore the latent. `seen` collects the pairs of times it was called with.
    """

    def __init__(self, world: LatentWorld, schedule: LatentSchedule, blind: bool = False) -> None:
        super().__init__()
        self.world, self.schedule, self.blind = world, schedule, blind
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_BL, z_BSD, t_x_B, t_z_B, select_BL=None):
        self.seen.append((t_x_B, t_z_B))
        a_B, sigma_B, z_B = self.schedule.a(t_z_B), self.schedule.sigma(t_z_B), z_BSD[:, 0, 0].double()
        posterior_BX = self.world.posterior(x_BL, z_B, a_B, sigma_B)
        z0_B = self.world.z0_mean(posterior_BX, z_B, a_B, sigma_B)
        if self.blind:
            posterior_BX = self.world.posterior(x_BL, z_B, torch.zeros_like(a_B), torch.ones_like(a_B))
        logits_BLV = self.world.token_logits(posterior_BX)
        return (logits_BLV if select_BL is None else logits_BLV[select_BL]), z0_B.view(-1, 1, 1).to(z_BSD.dtype)


class WorldPrior(nn.Module):
    """Stand-in for `LatentNetwork`: exact E[z0 | z_t] of the world's mixture, no tokens shown."""

    def __init__(self, world: LatentWorld, schedule: LatentSchedule) -> None:
        super().__init__()
        self.world, self.schedule = world, schedule

    def forward(self, z_BSD, t_B, previous_BSD=None):
        a_B, sigma_B, z_B = self.schedule.a(t_B), self.schedule.sigma(t_B), z_BSD[:, 0, 0].double()
        hidden_BL = torch.full((len(z_B), self.world.L), self.world.V)
        posterior_BX = self.world.posterior(hidden_BL, z_B, a_B, sigma_B)
        return self.world.z0_mean(posterior_BX, z_B, a_B, sigma_B).view(-1, 1, 1).to(z_BSD.dtype)


class GaussianPrior(nn.Module):
    """Stand-in for `LatentNetwork`: E[z0 | z_t] for z0 ~ N(mean, var)."""

    def __init__(self, var: float, schedule: LatentSchedule, mean: float = 0.0) -> None:
        super().__init__()
        self.var, self.mean, self.schedule = var, mean, schedule

    def forward(self, z_BSD, t_B, previous_BSD=None):
        a, sigma = self.schedule.a(t_B).view(-1, 1, 1), self.schedule.sigma(t_B).view(-1, 1, 1)
        gain = a * self.var / (a**2 * self.var + sigma**2)
        return (self.mean + gain * (z_BSD.double() - a * self.mean)).to(z_BSD.dtype)


class LinearDecoder(nn.Module):
    """Stand-in for SEQ's decoder: tokens independent given z, logits weight_LV z + bias_LV whatever is masked."""

    def __init__(self, weight_LV: Tensor, bias_LV: Tensor) -> None:
        super().__init__()
        self.weight_LV, self.bias_LV = weight_LV.double(), bias_LV.double()

    def log_p(self, z_B: Tensor) -> Tensor:
        """log p(x_i = v | z), (B, L, V) float64."""
        return (z_B[:, None, None] * self.weight_LV + self.bias_LV).log_softmax(-1)

    def forward(self, x_BL, z_BSD, t_x_B, t_z_B, select_BL=None):
        log_BLV = self.log_p(z_BSD[:, 0, 0].double()).float()
        return (log_BLV if select_BL is None else log_BLV[select_BL]), torch.zeros_like(z_BSD)
