"""Documents that repeat each other in part: found by runs of symbols that they share, so that a split keeps them together.

Shapes: D documents, T symbols of all of them, R runs of symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BASE, _MODULUS = 0x9E3779B97F4A7C15, 1 << 64  # odd, so that no symbol of a run is multiplied away
_AT_ONCE = 1 << 21  # runs that are sorted in one go, about: 150 MB, however many there are
_BLOCK = 1 << 17  # symbols: what stays in a cache


def groups_of(symbols: Sequence[np.ndarray], run: int) -> np.ndarray:
    """The group of each document of symbols below 256, (D,) int64: the number of its first member.

    Two documents that have a run of `run` symbols in common are of one group, and so are those that others link. Runs are
    compared by their polynomial hash modulo 2^64, which is the same on every machine.
    """
    stream_T = np.concatenate([np.empty(0, dtype=np.uint8), *symbols])
    end_D = np.cumsum([len(own) for own in symbols])
    leader = list(range(len(symbols)))
    parts = len(stream_T) // _AT_ONCE + 1
    for part in range(parts):
        hash_R, start_R = _runs(stream_T, run, part, parts)
        owner_R = np.searchsorted(end_D, start_R, side="right")
        inside_R = start_R + run <= end_D[owner_R]  # not across the border of two documents
        for one, other in _links(hash_R[inside_R], owner_R[inside_R]):
            first, second = sorted((_first(leader, one), _first(leader, other)))
            leader[second] = first
    return np.array([_first(leader, document) for document in range(len(leader))], dtype=np.int64)


def _runs(stream_T: np.ndarray, run: int, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs and where they start, of that one of `parts` shares of the hashes."""
    found = [(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))]
    for start in range(0, len(stream_T) - run + 1, _BLOCK):
        hash_R = _hashes(stream_T[start : start + _BLOCK + run - 1], run)
        mine_R = np.flatnonzero(hash_R % np.uint64(parts) == part)
        found.append((hash_R[mine_R], start + mine_R))
    hashes, starts = zip(*found, strict=True)
    return np.concatenate(hashes), np.concatenate(starts)


def _hashes(stream_T: np.ndarray, run: int) -> np.ndarray:
    """Of all runs, (T - run + 1,) uint64; runs are doubled, or grow by a symbol, until they are `run` long."""
    hash_R, size, power = stream_T.astype(np.uint64), 1, _BASE
    for bit in f"{run:b}"[1:]:
        hash_R = hash_R[:-size] * np.uint64(power) + hash_R[size:]
        size, power = 2 * size, power * power % _MODULUS
        if bit == "1":
            hash_R = hash_R[:-1] * np.uint64(_BASE) + stream_T[size:]
            size, power = size + 1, power * _BASE % _MODULUS
    return hash_R


def _links(hash_R: np.ndarray, owner_R: np.ndarray) -> list[list[int]]:
    """Pairs of documents with a hash in common, each once; enough of them to link all that have it."""
    order_R = np.argsort(hash_R)
    hash_R, owner_R = hash_R[order_R], owner_R[order_R]
    one_P, other_P = (owner_R[part][hash_R[:-1] == hash_R[1:]] for part in (slice(-1), slice(1, None)))
    differ_P, documents = one_P != other_P, int(owner_R.max(initial=0)) + 1
    pairs = np.unique(one_P[differ_P] * documents + other_P[differ_P])  # in one number: pairs are slow to sort
    return np.stack(np.divmod(pairs, documents), axis=1).tolist()


def _first(leader: list[int], document: int) -> int:
    """The first of a document's group; on the way, half of the way is saved for the next time."""
    while leader[document] != document:
        leader[document] = leader[leader[document]]
        document = leader[document]
    return document
