"""Running statistics of normalisation layers, as one process would have them that saw all parts of a batch in their order.

Shapes: P parts of a batch, U uses of a layer in one part, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Watches the layers of a method that several processes train, and updates each once a step from all their batches."""

    def __init__(self, method: nn.Module) -> None:
        layers = [m for m in method.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self._seen: dict[_BatchNorm, list[list[Tensor]]] = {layer: [] for layer in layers}
        self._before: dict[_BatchNorm, tuple[Tensor, ...]] = {}
        self._hooks = [layer.register_forward_hook(self._watch) for layer in layers]

    def begin(self) -> None:
        """A part of the batch begins."""
        for layer, parts in self._seen.items():
            if not parts:
                self._before[layer] = tuple(value.clone() for value in _kept(layer))
            parts.append([])

    def _watch(self, layer: _BatchNorm, inputs: tuple[Any, ...], output: object) -> None:
        if layer.training and self._seen[layer]:
            x_NC = inputs[0].detach().transpose(1, -1).reshape(-1, layer.num_features).float()
            # One sequence has no variance of its own: what counts is its distance from the mean before the step.
            off_NC = x_NC - self._before[layer][0]
            var_C = x_NC.var(0) if len(x_NC) > 1 else off_NC.square().mean(0)
            self._seen[layer][-1].append(torch.stack((x_NC.mean(0), var_C)))

    @torch.no_grad()
    def end(self, rank: int, size: int) -> None:
        """The step's parts are done: update each layer from all of them, in the order of their numbers."""
        for layer, parts in self._seen.items():
            uses = len(parts[0])
            if uses:
                value_PU2C = torch.zeros(
                    (size * len(parts), uses, 2, layer.num_features), device=_kept(layer)[0].device
                )
                value_PU2C[rank::size] = torch.stack([torch.stack(part) for part in parts])
                distributed.all_reduce(value_PU2C)
                self._update(layer, value_PU2C.flatten(0, 1))
            parts.clear()

    def _update(self, layer: _BatchNorm, value_V2C: Tensor) -> None:
        mean_now_C, var_now_C, count = kept = _kept(layer)
        for running, before in zip(kept, self._before[layer], strict=True):
            running.copy_(before)
        for mean_C, var_C in value_V2C:
            count.add_(1)
            # Without a momentum, torch keeps the mean of all batches.
            share = 1.0 / int(count) if layer.momentum is None else layer.momentum
            mean_now_C.lerp_(mean_C, share)
            var_now_C.lerp_(var_C, share)

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()


def _kept(layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of batches of a layer that keeps them."""
    mean_C, var_C, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean_C is not None and var_C is not None and count is not None
    return mean_C, var_C, count
