"""Weights that several processes hold a share of each: cut by torch's FSDP2, and how to read and fill them.

A tensor that is cut is a DTensor, of which this process holds some rows; what else is given is passed through, so that
training, averages and checkpoints are the same code in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from harness.interface import Loss, Method
from harness.nn.transformer import Trunk

#: What training calls of a method: all weights that a block does not hold are there while one of them runs.
_CALLED = ("loss", "bound", "diagnose", "calibrate")


def divide(method: Method) -> None:
    """Leave a share of each parameter in each process of the group: blocks of trunks one by one, the rest together.

    A block's weights are gathered while it runs, the others while the method does. Optimizers are made afterwards.
    """
    # Seconds of imports that nobody else needs.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.utils import _pytree

    # Before torch 2.13 FSDP2 finds a loss's tensor, whose gradient gathers weights, in containers that it knows alone.
    if Loss not in _pytree.SUPPORTED_NODES:
        _pytree.register_dataclass(Loss)
    mesh = init_device_mesh(next(method.parameters()).device.type, (distributed.get_world_size(),))
    for part in list(method.modules()):
        for block in part.blocks if isinstance(part, Trunk) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh, reshard_after_forward=True)
    for name in _CALLED:
        register_fsdp_forward_method(method, name)


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory."""
    shard: Any = getattr(tensor, "_local_tensor", tensor)
    return shard


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to ask."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor`, which every process has, cut as `other` is."""
    if local(other) is other:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # as above

    cut: Any = other
    return distribute_tensor(tensor.to(local(other).device), cut.device_mesh, cut.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """All of each tensor, which every process has to ask for; only where it is to `keep` them does it get them.

    What was cut comes in the processor's memory, one tensor after the other; names of one tensor stay names of one.
    """
    kept: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if local(tensor) is tensor:
            kept[name] = tensor
            continue
        key = id(local(tensor))
        if key not in seen:
            full = whole(tensor)
            seen[key] = full.cpu() if keep else torch.empty(0)
        kept[name] = seen[key]
    return kept if keep else {}
