"""Hashes of the n-grams of token sequences, and those of the training split, kept on disk for all rows of a study.

An n-gram is `sum_j r(x_j) b^(n - 1 - j)` modulo 2^64 with a random 64-bit number r for each token (Karp & Rabin 1987). Two
different ones among 10^8 collide with a probability below 10^-3, so a share is off by nothing that could be seen.

Shapes: N sequences, L tokens, n tokens of a window, W = L - n + 1 windows, T tokens of the training stream.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from harness.data.base import TokenData
from harness.data.files import digest, write_atomically

_BASE = np.uint64(0x9E3779B97F4A7C15)
_SEED = 20_251_128
_VERSION = 2


def hashes(x: np.ndarray, n: int) -> np.ndarray:
    """Hashes (..., W) uint64 of the windows of n tokens along the last axis of ids; W is at least 1."""
    most = int(x.max()) + 1 if x.size else 1
    number_V = np.random.default_rng(_SEED).integers(2**64, size=most, dtype=np.uint64)
    windows = x.shape[-1] - n + 1
    power, power_size = number_V[x], 1  # windows of 1, 2, 4, ... tokens
    made, size = np.zeros(x.shape, dtype=np.uint64), 0
    factor = np.array(_BASE)  # arrays wrap around in silence
    while True:
        if n & power_size:  # what is made already, and then this power: b^power_size is `factor`
            made = made[..., : x.shape[-1] - size - power_size + 1] * factor + power[..., size:]
            size += power_size
        if size == n:
            return np.ascontiguousarray(made[..., :windows])
        power = power[..., :-power_size] * factor + power[..., power_size:]
        factor, power_size = np.square(factor), 2 * power_size


def training_hashes(data: TokenData, n: int, max_tokens: int, cache: Path) -> np.ndarray:
    """Hashes of the different n-grams of the training split, sorted; read from `cache` where they were made before.

    Rows are taken as windows of one stream, so n-grams reach from row to row. Of a longer split the first `max_tokens`.
    """
    path = Path(cache) / "ngrams" / f"{digest([_VERSION, _SEED, data.fingerprint, n, max_tokens])[:24]}.npy"
    if not path.is_file():
        stream_T = np.asarray(data.splits["train"]).reshape(-1)[:max_tokens]
        known = hashes(stream_T, min(n, len(stream_T)))
        known.sort()  # np.unique is thirty times slower where most are different
        known = known[np.append(True, known[1:] != known[:-1])]
        write_atomically(path, partial(np.save, arr=known, allow_pickle=False))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def are_in(hash_NW: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each hash is in a sorted array, (N, W) bool."""
    asked, which = np.unique(hash_NW, return_inverse=True)  # in order, which reads a large array once
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return (known[place] == asked)[which].reshape(hash_NW.shape)
