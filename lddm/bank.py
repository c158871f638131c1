"""Latents of training sequences under a frozen encoder, kept so that a latent network can see many in a step.

A latent network runs over S slots and costs little, the encoder runs over L tokens: with a bank each step of a latent
stage encodes one batch of sequences and learns from hundreds of latents.

Shapes: M entries, S slots, D dims, B batch, N draws.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _Ring(nn.Module):
    """A ring of at most M rows; part of the checkpoint, so that a run that was killed goes on alike."""

    #: Name of the buffer that holds the rows, with their shape.
    _name: str
    count: Tensor
    cursor: Tensor

    def __init__(self, empty_M: Tensor) -> None:
        super().__init__()
        self.register_buffer(self._name, empty_M)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self._known: tuple[int, int] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())

    def _forget(self) -> None:
        self._known = None

    @property
    def _places(self) -> tuple[int, int]:
        """How many rows are filled and where the next one goes: read from the device once, and then known here."""
        if self._known is None:
            self._known = int(self.count), int(self.cursor)
        return self._known

    def _set_places(self, count: int, cursor: int) -> None:
        self._known = count, cursor
        self.count.fill_(count)
        self.cursor.fill_(cursor)

    @property
    def filled(self) -> int:
        """How many rows are filled."""
        return self._places[0]

    @property
    def _row_M(self) -> Tensor:
        return getattr(self, self._name)

    @property
    def rows(self) -> Tensor:
        """Those that are filled."""
        return self._row_M[: self.filled]

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything: the encoder has changed."""
        self._set_places(0, 0)

    @torch.no_grad()
    def put(self, row_B: Tensor) -> None:
        """Add a batch; the oldest entries make room."""
        size = len(self._row_M)
        row_B = row_B[-size:]
        count, cursor = self._places
        places = (cursor + torch.arange(len(row_B), device=row_B.device)) % size
        self._row_M[places] = row_B.to(self._row_M.dtype)
        self._set_places(min(count + len(row_B), size), (cursor + len(row_B)) % size)

    def _pick(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` rows, drawn with replacement."""
        known = max(self.filled, 1)
        return self._row_M[torch.randint(known, (n,), generator=generator, device=self._row_M.device)]


class LatentBank(_Ring):
    """Means (M, S, D) of q(z0 | x)."""

    _name = "mean_MSD"

    def __init__(self, size: int, slots: int, dims: int) -> None:
        super().__init__(torch.zeros(size, slots, dims))

    @torch.no_grad()
    def refill(self, mean: Callable[[Tensor], Tensor], x_NL: Tensor) -> None:
        """Forget everything, then encode `x_NL` with `mean`: (B, L) tokens to (B, S, D)."""
        self.clear()
        for x_BL in x_NL.split(256):
            self.put(mean(x_BL))

    def draw(self, n: int, noise: float, generator: torch.Generator) -> Tensor:
        """`n` latents z0 = mu + noise eps from entries drawn with replacement, (n, S, D)."""
        mean_NSD = self._pick(n, generator)
        eps_NSD = torch.randn(mean_NSD.shape, generator=generator, device=mean_NSD.device)
        return mean_NSD + noise * eps_NSD


class CodeBank(_Ring):
    """Codes (M, S) int64, each drawn once from q(c | x)."""

    _name = "code_MS"

    def __init__(self, size: int, slots: int) -> None:
        super().__init__(torch.zeros((size, slots), dtype=torch.int64))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Codes of `n` entries drawn with replacement, (n, S)."""
        return self._pick(n, generator)
