"""Several processes that train one model: who takes which part of a batch, and what they exchange.

The parts (`train.accumulate` of them) have noise that depends on the seed, the step and the part's number alone, and process
r of P takes the parts r, r + P, ... So P processes compute what one process computes with the same number of parts: the
same weights at the same step, up to the order in which gradients are added (to the bit with two parts and two processes).
Gradients are exchanged by torch's DistributedDataParallel; or, where each process holds a share of the weights, by its FSDP2
(`harness.training.shards`).

Running statistics are updated from all parts (`harness.training.statistics`). Other buffers that training itself changes
(a bank of latents) are those of the first process at the start of each step: they see its parts only. A method whose loss
reads such a buffer follows the same law as with one process, not the same numbers. That every process starts a step with the
same buffers is what lets a run that was killed go on with the same numbers from a checkpoint of the first.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from harness.errors import UserError
from harness.interface import Loss, Method
from harness.training.shards import divide
from harness.training.statistics import RunningStatistics

#: How long the others wait while the first validates; a process that ends is noticed at once by other means.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Group:
    """`size` processes, of which this one is number `rank`; `Group()` is one process by itself, which exchanges nothing.

    With `shard` each holds a share of the weights that it trains, of their average and of the optimizer's moments.
    """

    rank: int = 0
    size: int = 1
    shard: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that validates, reports and writes."""
        return self.rank == 0

    def parts(self, count: int) -> range:
        """Which of `count` parts of a batch, or chunks of what is drawn, are this process's."""
        return range(self.rank, count, self.size)

    def add(self, value: Tensor) -> None:
        """Replace `value` by its sum over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)

    def agrees(self, wish: bool, device: str) -> bool:
        """What the first process wishes, where all have to do it together; each process's own wish where not."""
        if not self.shard:
            return wish
        said = torch.tensor([float(wish and self.leads)], device=device)
        self.add(said)
        return bool(said)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def divide(self, method: Method) -> None:
        """Leave a share of the weights in each process, if that is wanted."""
        if self.shard:
            divide(method)

    @contextmanager
    def shared(self, method: Method) -> Iterator[SharedLoss]:
        """The loss of `method` in its current stage; what a stage freezes is fixed while the block lasts."""
        loss = SharedLoss(method, self)
        try:
            yield loss
        finally:
            loss.close()


class SharedLoss:
    """`method.loss`, whose gradients are averaged over all processes when the last part of a step is done."""

    def __init__(self, method: Method, group: Group) -> None:
        self._plain, self._group = method.loss, group
        self._shared: DistributedDataParallel | None = None
        if group.size > 1:
            if not group.shard:
                # A loss uses all parameters that its stage leaves free, but for those that the method names.
                self._shared = DistributedDataParallel(
                    _LossModule(method), find_unused_parameters=bool(method.idle), broadcast_buffers=False
                )
            self._statistics = RunningStatistics(method)
            self._buffers = list(method.buffers())
            self._versions = [-1] * len(self._buffers)
            self._begins = True

    def __call__(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        if self._shared is None:
            return self._plain(x_BL, generator)
        return Loss(*self._shared(x_BL, generator))

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a part; what is exchanged travels with the last one of a step."""
        if self._group.size == 1:
            yield
            return
        if self._begins:
            self._send_buffers()
        self._begins = last
        self._statistics.begin()
        # Shares of gradients are added up part by part: all of a gradient is what there is no room for.
        with nullcontext() if last or self._shared is None else self._shared.no_sync():
            yield
        if last:
            self._statistics.end(self._group.rank, self._group.size)

    def _send_buffers(self) -> None:
        """Give all processes the first one's buffers that changed in the step before; tables that were fitted do not."""
        for place, buffer in enumerate(self._buffers):
            if buffer._version != self._versions[place]:
                distributed.broadcast(buffer, 0)
                self._versions[place] = buffer._version

    def close(self) -> None:
        """Take the hooks off the method: the next stage has other gradients to exchange."""
        if self._group.size > 1:
            self._statistics.close()
            self._shared = None
            gc.collect()  # the wrapper refers to itself, and its hooks stay for as long as it does


class _LossModule(nn.Module):
    """A method whose `forward` is its loss, as DistributedDataParallel wants it: tensors in plain containers."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, x_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.method.loss(x_BL, generator)
        return loss.total, loss.parts


def join(device: str, shard: bool = False) -> Group:
    """The group that a launcher (`harness.jobs.launch`, torchrun) started this process for, from its environment.

    On GPUs each process of a machine takes the one of its number there. Raises `UserError` outside of a launcher.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError("there is no group of processes to join: start this with torchrun")
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(distributed.rendezvous("env://"))
    # The launcher's store outlives a restart: without a place of their own, processes would look for those that died.
    store = distributed.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    return Group(rank, size, shard)


def leave() -> None:
    """The end of `join`."""
    distributed.destroy_process_group()


# ---- devices ----------------------------------------------------------------------------------------------------------
def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(i) for i in range(count)]


def gpu_groups(processes: int) -> list[str]:
    """Values of `CUDA_VISIBLE_DEVICES` for as many workers as the GPUs are enough for, `processes` GPUs for each."""
    gpus = visible_gpus()
    return [",".join(gpus[i : i + processes]) for i in range(0, len(gpus) - processes + 1, processes)]


def check_processes(processes: int, device: str) -> None:
    """Raise `UserError` where `compute.processes` cannot be had on this machine with `device` (resolved)."""
    if processes == 1 or device == "cpu":
        return
    if device != "cuda":
        hint = "use compute.device=cuda" if device.startswith("cuda") else "use compute.device=cpu"
        raise UserError(f"compute.processes={processes}: compute.device={device} is one device; {hint}")
    count = torch.cuda.device_count()
    if processes > count:
        raise UserError(
            f"compute.processes={processes}: each needs a GPU and this machine has {count}; use compute.processes={count}"
        )
