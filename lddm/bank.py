"""Means of q(z0 | x) of training sequences under a frozen encoder, kept so that a latent network can see many in a step.

A latent network runs over S slots and costs little, the encoder runs over L tokens: with a bank each step of a latent
stage encodes one batch of sequences and learns from hundreds of latents.

Shapes: M entries, S slots, D dims, B batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class LatentBank(nn.Module):
    """A ring of at most `size` means (M, S, D); part of the checkpoint, so that a run that was killed goes on alike."""

    def __init__(self, size: int, slots: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean_MSD", torch.zeros(size, slots, dims))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything: the encoder has changed."""
        self.count.zero_()
        self.cursor.zero_()

    @torch.no_grad()
    def refill(self, mean: Callable[[Tensor], Tensor], x_NL: Tensor) -> None:
        """Forget everything, then encode `x_NL` with `mean`: (B, L) tokens to (B, S, D)."""
        self.clear()
        for x_BL in x_NL.split(256):
            self.put(mean(x_BL))

    @torch.no_grad()
    def put(self, mean_BSD: Tensor) -> None:
        """Add a batch; the oldest entries make room."""
        size = len(self.mean_MSD)
        mean_BSD = mean_BSD[-size:]
        rows = (int(self.cursor) + torch.arange(len(mean_BSD), device=mean_BSD.device)) % size
        self.mean_MSD[rows] = mean_BSD.to(self.mean_MSD.dtype)
        self.cursor.fill_((int(self.cursor) + len(mean_BSD)) % size)
        self.count.fill_(min(int(self.count) + len(mean_BSD), size))

    def draw(self, n: int, noise: float, generator: torch.Generator) -> Tensor:
        """`n` latents z0 = mu + noise eps from entries drawn with replacement, (n, S, D)."""
        row_N = torch.randint(max(int(self.count), 1), (n,), generator=generator, device=self.mean_MSD.device)
        mean_NSD = self.mean_MSD[row_N]
        eps_NSD = torch.randn(mean_NSD.shape, generator=generator, device=mean_NSD.device)
        return mean_NSD + noise * eps_NSD
