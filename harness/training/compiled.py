"""Trunks in compiled form: where that pays, where the compiler keeps its files, and training when the toolchain fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from harness.nn.transformer import Trunk
from harness.provenance import short_hash
from harness.training import loop
from harness.training.precision import cpu_flags


def compile_trunks(networks: Iterable[nn.Module], cache: Path, causal: bool = False) -> None:
    """Compile the trunks of the networks in place, for each size of a batch; with `causal` also those that decode.

    What was compiled is kept in `cache`, for other workers and other runs on a processor with the same instructions.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / f"compiled-{short_hash(sorted(cpu_flags()), 8)}")
    torch.compiler.reset()  # what this worker compiled before counts against a limit
    # Beyond the limit of graphs the compiler would go on without compiling, and say nothing.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for network in networks:
        for module in network.modules():
            if isinstance(module, Trunk) and (causal or not module.causal):
                module.through = torch.compile(_own_code(module), dynamic=False)  # type: ignore[method-assign]


def _own_code(trunk: Trunk) -> Callable[..., Any]:
    """`through` with code of its own: graphs count against the limit by code, which all trunks of a method would share."""
    plain = type(trunk).through
    code = plain.__code__.replace()
    return MethodType(FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__), trunk)


def train(job: loop.Job, cache: Path) -> dict[str, float]:
    """`loop.train` with compiled trunks. Where the toolchain fails, one line says so and all of it runs uncompiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    start = {name: value.clone() for name, value in job.method.state_dict().items()}
    compile_trunks([job.method], cache, causal=True)
    try:
        return loop.train(job)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        if job.group.leads:
            say_uncompiled(type(job.method).__name__, "training", error)
        job.method.load_state_dict(start)
    with torch.compiler.set_stance("force_eager"):
        return loop.train(job)


def say_uncompiled(name: str, what: str, error: Exception) -> None:
    """A line with the compiler's reason: `what` (training or sampling, of `name`) goes on without it."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("backend=")]
    reason = lines[0] if lines else type(error).__name__
    print(f"\n{name}: torch.compile failed ({reason}); {what} runs uncompiled", file=sys.stderr, flush=True)
