"""Drawing a study's samples: exact budgets counted by hooks, seeded by part and chunk, timed, FLOPs counted.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.interface import Draw, Sampler
from harness.metrics.base import Prompts
from harness.nn.slices import unshared
from harness.study.budget import COUNTED_SEQUENCES, count_flops, counted_calls
from harness.study.cells import Part
from harness.training.compiled import compile_trunks
from harness.training.distributed import Group
from harness.training.precision import Numerics
from harness.training.seeds import step_generator


@dataclass(frozen=True)
class Drawn:
    """Samples of one part and what they cost for each sequence.

    `calls` are mean and maximum where they differ, or what is stated of samples that are given.
    """

    x_NL: np.ndarray
    nfe_latent: int
    nfe_token: int
    draw_dtype: str
    seconds_per_seq: float
    flops_per_seq: float
    calls: dict[str, float]


class SamplerError(RuntimeError):
    """A sampler broke its contract: calls, mask tokens or dtype. A defect of its code, never of the user."""


#: Tokens (N, L), and which of them are hidden from the sampler.
Given = tuple[torch.Tensor, torch.Tensor]


def _drawn(sampler: Sampler, n: int, part: Part, generator: torch.Generator, given: Given | None) -> Draw:
    if given is None:
        return sampler.draw(n, part.nfe, generator, part.temperature)
    return sampler.fill(given[0][:n], given[1][:n], part.nfe, generator, part.temperature)


def checked_draw(sampler: Sampler, n: int, part: Part, generator: torch.Generator, given: Given | None = None) -> Draw:
    """`sampler.draw` (or `fill`) with its contract checked: calls by hook, ids below V, float64 draws, what is given kept."""
    sampler.prepare(part.nfe, part.temperature, generator.device)
    with counted_calls(sampler) as calls:
        draw = _drawn(sampler, n, part, generator, given)
    spent = sum(calls.values())
    claimed = draw.nfe if draw.calls_N is None else int(draw.calls_N.sum())
    met = spent <= n * part.nfe if sampler.adaptive else spent == part.nfe
    if not (met and spent == claimed and draw.nfe == part.nfe and (draw.calls_N is not None) == sampler.adaptive):
        raise SamplerError(f"{sampler.title} reports {claimed} calls at NFE {part.nfe}; its networks saw {spent}")
    x_NL, problem = draw.x_NL, sampler.method.problem
    if x_NL.shape != (n, problem.length) or int(x_NL.min()) < 0 or int(x_NL.max()) >= problem.vocab_size:
        raise SamplerError(f"{sampler.title} left ids outside its vocabulary, or a wrong shape, at NFE {part.nfe}")
    if given is not None and not torch.equal(x_NL.masked_fill(given[1], 0), given[0].masked_fill(given[1], 0)):
        raise SamplerError(f"{sampler.title} changed tokens that it was given, at NFE {part.nfe}")
    if draw.draw_dtype != "float64":
        raise SamplerError(f"{sampler.title} drew its tokens in {draw.draw_dtype}; the protocol asks for float64")
    return draw


def warm_up(sampler: Sampler, part: Part, chunk: int, numerics: Numerics, cache: Path) -> None:
    """Compile the trunks and run them once at the chunk size, outside the timed calls."""
    compile_trunks(sampler.networks().values(), cache)
    generator = step_generator(numerics.device, 0)
    with torch.inference_mode(), numerics.autocast():
        sampler.draw(chunk, part.nfe, generator, part.temperature)


def draw_samples(
    sampler: Sampler,
    part: Part,
    n: int,
    chunk: int,
    seeds: tuple[int, int],
    numerics: Numerics,
    progress: Callable[[int, int], None],
    prompts: Prompts | None = None,
    group: Group | None = None,
) -> Drawn:
    """`n` sequences in chunks, each from a generator of its own; `seeds` are the sampling seed and the training seed.

    The last chunk is drawn whole and cut, so that every call has the same shape. Time is that of the sampler alone. With
    `prompts` sequence i fills in what is hidden of the i-th of them. Process r of a `group` of P draws the chunks r, r + P,
    ..., at least one, and all return the same samples as one process; their time is added up, so that seconds and FLOPs are
    those of a sequence on one device.
    """
    group = group or Group()
    sampler.method.eval().to(numerics.device)
    chunk = min(chunk, n)
    temperature = round(part.temperature * 1_000_000)

    def generator(index: int) -> torch.Generator:
        return step_generator(numerics.device, seeds[0], seeds[1], 3, part.nfe, temperature, index)

    def given(index: int) -> Given | None:
        if prompts is None:
            return None
        rows = np.arange(index * chunk, (index + 1) * chunk) % n
        parts = (prompts.x_NL[rows].astype(np.int64), prompts.hidden_NL[rows])
        return tuple(torch.from_numpy(part).to(numerics.device) for part in parts)  # type: ignore[return-value]

    def run(count: int, index: int) -> Draw:
        with torch.inference_mode(), numerics.autocast():
            return checked_draw(sampler, count, part, generator(index), given(index))

    chunks = -(-n // chunk)
    x_CNL, calls_CN, seconds = _kept(sampler, chunks, chunk, numerics.device)
    for index in group.parts(chunks):
        began = _clock(numerics.device)
        drawn = run(chunk, index)
        seconds += _clock(numerics.device) - began
        x_CNL[index] = drawn.x_NL
        if drawn.calls_N is not None:
            calls_CN[index] = drawn.calls_N
        progress(min((index + group.size) * chunk, n), n)
    for value in (x_CNL, calls_CN, seconds):
        group.add(value)  # zeros where another process has the value
    few = min(COUNTED_SEQUENCES, n)
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), unshared():
        flops = count_flops(lambda: _drawn(sampler, few, part, generator(0), given(0))) / few
    spread: dict[str, float] = {} if drawn.stated is None else {"nfe": drawn.stated}
    if drawn.calls_N is not None:  # of the sequences that are cut off too: a draw meets its budget as a whole
        spread = {"nfe_mean": float(calls_CN.mean()), "nfe_max": float(calls_CN.max())}
    x_NL, each = x_CNL.flatten(0, 1)[:n].cpu().numpy(), float(seconds) / (chunks * chunk)
    return Drawn(x_NL, drawn.nfe_latent, drawn.nfe_token, drawn.draw_dtype, each, flops, spread)


def _kept(sampler: Sampler, chunks: int, chunk: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zeros for what all chunks give: tokens (C, N, L) int64, calls (C, N) of sequences and seconds (1,), both float64."""
    x_CNL = torch.zeros((chunks, chunk, sampler.method.problem.length), dtype=torch.int64, device=device)
    calls_CN, seconds = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((chunks, chunk), (1,)))
    return x_CNL, calls_CN, seconds


def _clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
