"""The noise schedule of the latent: a(t) and sigma(t) with a^2 + sigma^2 = 1, for a time t in [0, 1] (0 data, 1 noise).

Times and values are tensors of any one shape, computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentSchedule:
    """Variance-preserving cosine schedule with a time shift: a = cos(pi u / 2), sigma = sin(pi u / 2),
    u = shift t / (1 + (shift - 1) t). A shift above 1 moves the times to higher noise (Esser et al. 2024, eq. 23).
    """

    shift: float = 1.0

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
