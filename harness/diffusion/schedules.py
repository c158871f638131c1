"""Noise schedules of tokens: alpha(t), the probability that a token is still shown at time t in [0, 1] (0 data, 1 noise).

Times and values are tensors of any one shape; they are computed in float64, because a reverse step divides differences of
alpha by 1 - alpha.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class TokenSchedule(ABC):
    """alpha(0) = 1, alpha(1) = 0, strictly decreasing; so no prior term is missing from the bound."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability of a token being shown at time t."""

    @abstractmethod
    def time(self, alpha: Tensor) -> Tensor:
        """The t at which alpha(t) is `alpha`."""

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

    def time(self, alpha: Tensor) -> Tensor:
        return 1.0 - alpha.double()

    def slope(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t, dtype=torch.float64)


class Cosine(TokenSchedule):
    """alpha = 1 - cos(pi (1 - t) / 2) (MD4, table 1): few tokens are shown in the first steps of sampling."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - torch.sin(0.5 * math.pi * t.double())

    def time(self, alpha: Tensor) -> Tensor:
        return torch.asin(1.0 - alpha.double()) / (0.5 * math.pi)

    def slope(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.cos(0.5 * math.pi * t.double())


@dataclass(frozen=True)
class Polynomial(TokenSchedule):
    """alpha = 1 - t^power (MD4, table 1)."""

    power: float = 2.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t.double() ** self.power

    def time(self, alpha: Tensor) -> Tensor:
        return (1.0 - alpha.double()) ** (1.0 / self.power)

    def slope(self, t: Tensor) -> Tensor:
        return -self.power * t.double() ** (self.power - 1.0)


TOKEN_SCHEDULES = {"linear": Linear, "log_linear": Linear, "cosine": Cosine, "quadratic": Polynomial}


def token_schedule(name: str) -> TokenSchedule:
    """Schedule by its name in `TOKEN_SCHEDULES`."""
    return TOKEN_SCHEDULES[name]()


def stratified_times(count: int, generator: torch.Generator, largest: float = 1.0) -> Tensor:
    """`count` times in (0, largest], float64: one shared uniform plus i / count, wrapped (VDM, appendix I.1).

    Every time is uniform by itself; together they cover the interval, which lowers the variance of a batch's loss.
    """
    u = torch.rand(1, generator=generator, dtype=torch.float64, device=generator.device)
    grid = torch.arange(count, dtype=torch.float64, device=generator.device) / count
    return largest * (1.0 - torch.remainder(u + grid, 1.0))
