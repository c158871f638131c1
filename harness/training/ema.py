"""Exponential moving average of a method's parameters, all tensors in one call (foreach)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.training.shards import local


class EMA:
    """Average that looks back `share` of the updates so far: decay s k / (1 + s k) in update k, whatever the run's length."""

    def __init__(self, module: nn.Module, share: float) -> None:
        self.share = share
        self.updates = 0
        self._live = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live parameters; call after each optimizer step."""
        self.updates += 1
        weight = 1.0 / (1.0 + self.share * self.updates)
        torch._foreach_lerp_(
            list(map(local, self.shadow.values())), [local(p.detach()) for p in self._live.values()], weight
        )

    @torch.no_grad()
    def restart(self) -> None:
        """Start again from the live parameters: at a new stage, so that what it freezes is exact in the average."""
        self.updates = 0
        for name, p in self._live.items():
            self.shadow[name].copy_(p)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the average into the live parameters."""
        for name, p in self._live.items():
            p.copy_(self.shadow[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with averaged weights inside the block, the live ones after it."""
        kept: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(kept[name])
