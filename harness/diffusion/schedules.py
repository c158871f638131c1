"""Noise schedules of the two channels, as functions of a time t in [0, 1] (0 data, 1 noise).

Token channel: alpha(t), the probability that a token is still shown. Latent channel: a(t) and sigma(t) with
a^2 + sigma^2 = 1. Times and values are tensors of any one shape; they are computed in float64, because a reverse step
divides differences of alpha by 1 - alpha.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import UserError, nearest


class TokenSchedule(ABC):
    """alpha(0) = 1, alpha(1) = 0, strictly decreasing; so no prior term is missing from the bound."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability of a token being shown at time t."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """alpha'(t), negative."""

    def weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): the weight of a masked token's cross-entropy in the NELBO (MDLM, eq. 10)."""
        t = t.double()
        return -self.slope(t) / (1.0 - self.alpha(t))


class Linear(TokenSchedule):
    """alpha = 1 - t; the log-linear schedule of MDLM (sigma = -log(1 - t)) is this one."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t.double()

    def slope(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t, dtype=torch.float64)


class Cosine(TokenSchedule):
    """alpha = 1 - cos(pi (1 - t) / 2) (MD4, table 1): few tokens are shown in the first steps of sampling."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - torch.sin(0.5 * math.pi * t.double())

    def slope(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.cos(0.5 * math.pi * t.double())


@dataclass(frozen=True)
class Polynomial(TokenSchedule):
    """alpha = 1 - t^power (MD4, table 1)."""

    power: float = 2.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t.double() ** self.power

    def slope(self, t: Tensor) -> Tensor:
        return -self.power * t.double() ** (self.power - 1.0)


_TOKEN_SCHEDULES = {"linear": Linear, "log_linear": Linear, "cosine": Cosine, "quadratic": Polynomial}


def token_schedule(name: str) -> TokenSchedule:
    """Schedule by its configuration name; `UserError` names the nearest one."""
    if name not in _TOKEN_SCHEDULES:
        raise UserError(f"token schedule '{name}' is unknown{nearest(name, _TOKEN_SCHEDULES)}")
    return _TOKEN_SCHEDULES[name]()


@dataclass(frozen=True)
class LatentSchedule:
    """Variance-preserving cosine schedule with a time shift: a = cos(pi u / 2), sigma = sin(pi u / 2),
    u = shift t / (1 + (shift - 1) t). A shift above 1 moves the times to higher noise (Esser et al. 2024, eq. 23).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"latent schedule shift={self.shift} must be positive; 1 leaves the times as they are")

    def warp(self, t: Tensor) -> Tensor:
        """Shifted time u(t)."""
        t = t.double()
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def a(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * self.warp(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * self.warp(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a^2 / sigma^2), decreasing in t."""
        return -2.0 * torch.log(torch.tan(0.5 * math.pi * self.warp(t)))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`."""
        u = torch.atan(torch.exp(-0.5 * log_snr.double())) * (2.0 / math.pi)
        return u / (self.shift - (self.shift - 1.0) * u)


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """`count` times in (0, 1], float64: one shared uniform plus i / count, wrapped (VDM, appendix I.1).

    Every time is uniform by itself; together they cover the unit interval, which lowers the variance of a batch's loss.
    """
    u = torch.rand(1, generator=generator, dtype=torch.float64, device=generator.device)
    grid = torch.arange(count, dtype=torch.float64, device=generator.device) / count
    return 1.0 - torch.remainder(u + grid, 1.0)
