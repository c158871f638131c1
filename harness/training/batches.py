"""Which sequences each step of a training sees, and their reading ahead of it.

Shapes: B batch, N sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch

from harness.config.schema import ScaleConfig

Read = TypeVar("Read")


def batch_rows(rows: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Row numbers (B,) of a step's batch: a fresh permutation of all rows in each epoch, cut into batches."""
    index = np.arange(step * batch, (step + 1) * batch)
    epochs = np.unique(index // rows)
    picks = [_permutation(rows, seed, int(e))[index[index // rows == e] % rows] for e in epochs]
    return np.concatenate(picks)


def budget_rows(rows: int, scale: ScaleConfig, seed: int) -> np.ndarray:
    """Row numbers (N,), ascending, of the sequences that the first `scale.steps` steps see, each once."""
    return np.sort(batch_rows(rows, min(scale.steps * scale.batch, rows), 0, seed))


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Kept for the epoch: drawing it anew cost a twentieth of each step."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def read_ahead(read: Callable[[int], Read], steps: range, device: str) -> Iterator[tuple[int, Read]]:
    """Each step with `read(step)`; the next step's is read by another thread while a GPU works on this one's.

    On a CPU it is read when it is wanted: the other thread cost a step of 130 CPU-ms seven more (docs/performance.md).
    """
    if not device.startswith("cuda"):
        yield from ((step, read(step)) for step in steps)
        return
    # Memory that is pinned belongs to the thread's GPU, which would be the first one in every process.
    begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None
    with ThreadPoolExecutor(1, "batches", begin) as thread:
        coming = [thread.submit(read, step) for step in steps[:1]]
        for step in steps:
            made = coming.pop().result()
            coming += [thread.submit(read, after) for after in steps[step + 1 - steps.start :][:1]]
            yield step, made
