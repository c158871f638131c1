"""Whether a study's batches can fit in memory, found out before any work: what cannot is refused, and never what can.

What one more sequence takes is measured on a few: what a step of training keeps for its gradient, and the largest tensor of a
bound and of a draw. That is less than what is needed in the end; other workers and what else is in memory are not counted,
nor what `compute.activation_checkpointing` and `compute.shard` leave out.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.errors import UserError
from harness.interface import Method
from harness.jobs.memory import memory_limit
from harness.nn.transformer import recompute_blocks
from harness.study.cells import Cell
from harness.study.session import Session
from harness.training.seeds import step_generator

_FEW, _MORE = 4, 12
#: The masked share of a few sequences is not quite that of many: what is refused needs this many times what there is.
_MARGIN = 1.25
#: In training weights, their average, gradient and a moment or two.
_COPIES = 4


def check_memory(session: Session, cells: list[Cell]) -> None:
    """Raise `UserError` for a batch, a validation or a number drawn at a time that cannot fit on the session's device."""
    device = session.numerics.device
    there = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else memory_limit()
    for cell in {(cell.method, cell.sampler): cell for cell in cells if cell.weights.trained}.values():
        for key, count, measure in _sizes(session, cell):
            if count * _most(session) < there:  # as it nearly always is: there is nothing to measure
                continue
            each, fixed = measure()
            if count * each + fixed > _MARGIN * there:
                takes, has = (f"{size / 2**30:.3g} GiB" for size in (count * each + fixed, there))
                raise UserError(
                    f"{key}: {count} sequences of {session.data.length} tokens at once take {takes} or more for {cell.method}, "
                    f"and there are {has} ({device}); {_way_out(session, key, max(1, int((there - fixed) / each)))}"
                )


def _most(session: Session) -> float:
    """More bytes than a sequence takes of a method that is built of the study's trunk."""
    s = session.cfg.scale
    return s.length * (32.0 * session.data.vocab_size + 40.0 * s.depth * s.width * (4 + s.mlp_ratio))


def _way_out(session: Session, key: str, fits: int) -> str:
    name, batch = key.partition("=")[0], session.cfg.scale.batch
    if name != "scale.batch":
        return f"use {name}={fits} or less"
    parts = next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= fits)
    return f"use train.accumulate={parts}, which cuts a batch into parts, or a smaller batch"


def _sizes(session: Session, cell: Cell) -> Iterator[tuple[str, int, Callable[[], tuple[float, int]]]]:
    """(key and value, sequences at a time, what tells the bytes that each takes and all share) of what is still to be done."""
    scale, train, c, s = session.cfg.scale, session.cfg.train, session.cfg.compute, session.cfg.study

    def of_one(measure: Callable[[Method, Tensor, torch.Generator], list[int]], copies: float = 1) -> tuple[float, int]:
        found, device = [], session.numerics.device
        for count in (_FEW, _MORE):
            method = session.build(cell.method).to(device)
            method.set_stage(method.stages()[-1].name)
            recompute_blocks(method, session.numerics.recompute)
            x_NL = torch.from_numpy(session.data.some("train", count)).to(device)
            with session.numerics.autocast():
                found.append(measure(method, x_NL, step_generator(device, 0)))
        fixed = int(copies * sum(p.nbytes for p in method.parameters()))
        slopes = [(more - few) / (_MORE - _FEW) for few, more in zip(*found, strict=True)]
        return max(1.0, *slopes), fixed

    def draw(method: Method, x_NL: Tensor, generator: torch.Generator) -> list[int]:
        sampler = session.sampler(method.eval(), cell.method, cell.sampler)
        return _largest(lambda: sampler.draw(len(x_NL), nfe, generator))

    share = 1 / c.processes if c.shard else 1.0  # of the weights that each process holds while it trains
    if not cell.weights.model.exists():
        yield f"scale.batch={scale.batch}", scale.batch // train.accumulate, lambda: of_one(_kept, share * _COPIES)
        yield (
            f"train.valid_sequences={train.valid_sequences}",
            min(train.valid_sequences, len(session.data.splits["valid"])),
            lambda: of_one(lambda method, x_NL, generator: _largest(lambda: method.eval().bound(x_NL, generator)), share),
        )  # fmt: skip
    nfe = min(part.nfe for part in cell.parts)
    if nfe < scale.length // 2 and not cell.facts(session).exists():  # token by token it takes long, and little
        yield f"compute.sample_batch={c.sample_batch}", min(c.sample_batch, s.samples), lambda: of_one(draw)


def _kept(method: Method, x_NL: Tensor, generator: torch.Generator) -> list[int]:
    """Bytes that a loss keeps for its gradient in each stage."""
    own = {p.untyped_storage().data_ptr() for p in (*method.parameters(), *method.buffers())}
    sums, found = list[int](), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    for stage in method.stages():
        method.set_stage(stage.name)
        found.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _ = method.loss(x_NL, generator)
        sums.append(sum(found.values()))
    return sums


def _largest(run: Callable[[], object]) -> list[int]:
    with torch.inference_mode(), _Largest() as seen:
        run()
    return [seen.bytes]


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that is made, in bytes; those of draws in float64 are made in slices."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [t.nbytes for t in tree_leaves(made) if isinstance(t, Tensor) and t.dtype != torch.float64]
        self.bytes = max([self.bytes, *sizes])
        return made
