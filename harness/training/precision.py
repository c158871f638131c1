"""Device and precision: picked automatically, or as told, and refused in one line where the machine has them not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from harness.errors import UserError
from harness.nn.slices import at_most


@dataclass(frozen=True)
class Numerics:
    """Resolved device and dtype of the networks' arithmetic; weights, losses and logits stay in float32.

    `eval_tokens` are read at a time where no gradient is wanted (`harness.nn.slices`); with `recompute` training keeps the
    input of each block alone.
    """

    device: str
    precision: str
    compile_training: bool = False
    compile_sampling: bool = False
    eval_tokens: int = 1 << 15
    recompute: bool = False

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Inside, networks multiply in the precision, and read so many tokens at a time."""
        half = self.precision != "float32"
        cast = torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16) if half else nullcontext()
        with at_most(self.eval_tokens), cast:
            yield


#: What compiling saves on a CPU, seconds for each FLOP, and what it takes once, seconds for a model's trunks in training
#: and for a sampler's. Measured on one core (docs/log.md, 2026-11-27); it takes less where the cache has them.
_SAVED, _TAKEN_TRAINING, _TAKEN_SAMPLING = 5e-12, 30.0, 10.0


def resolve(
    device: str, precision: str, compile_mode: str = "false", training_flops: float = 0, sampling_flops: float = 0
) -> Numerics:
    """Turn `auto` into what this machine has; raises `UserError` for a device that is not there.

    Compilation pays on a GPU. On a CPU it pays for a model that takes so many FLOPs to train, or to draw from, that more
    time is saved than taken, by an estimate that is the same in each run: what goes on after a kill must round as before.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"compute.device={device} is unknown; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        index = int(device.split(":")[1]) if ":" in device and device.split(":")[1].isdigit() else 0
        if index >= count:
            have = f"this machine has {count}" if count else "torch sees no GPU here"
            raise UserError(f"compute.device={device}: {have}; choose {'cuda:0' if count else 'cpu'}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("compute.device=mps: torch sees no Metal device here; choose cpu")
    if precision == "auto":
        precision = "bfloat16" if kind == "cuda" or (kind == "cpu" and cpu_has_bfloat16()) else "float32"
    mode = compile_mode.lower()
    can = kind == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "c++", "clang++"))
    if mode == "true" and not can:
        raise UserError("compute.compile=true: no C++ compiler found, which torch.compile needs on a CPU; use auto")

    def compiles(flops: float, taken: float) -> bool:
        return mode == "true" or (mode == "auto" and can and (kind == "cuda" or flops * _SAVED > taken))

    training, sampling = compiles(training_flops, _TAKEN_TRAINING), compiles(sampling_flops, _TAKEN_SAMPLING)
    return Numerics(device, precision, training, sampling)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` CPU threads for torch inside the block; 0 leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_has_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware; elsewhere autocast is slower than float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_flags() -> set[str]:
    """What the CPU can do, in Linux's words; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as handle:
            return set(next((line for line in handle if line.startswith(("flags", "Features"))), "").split())
    except OSError:
        return set()
