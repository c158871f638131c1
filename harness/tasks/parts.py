"""What the exact tasks share: enumeration, one-hot codes, point masses, entropies in closed form, checks of ids.

Shapes: N sequences, L tokens, V symbols, X = V^L all sequences, C support.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from harness.tasks.base import ExactTask

#: Up to this many sequences everything is summed one by one.
ENUMERABLE = 4096
#: Draws of a Monte Carlo entropy, and its seed: a task has one entropy, whatever the seed of its data.
DRAWS = 16384
ENTROPY_SEED = 20_250_301
_ROWS_A_BLOCK = 4096


def is_enumerable(vocab_size: int, length: int) -> bool:
    """Whether V^L is at most `ENUMERABLE`."""
    return length * math.log(vocab_size) <= math.log(ENUMERABLE) + 1e-9


def all_sequences(vocab_size: int, length: int) -> Tensor:
    """Every sequence, (X, L) int64, the last token counting fastest."""
    number_X = torch.arange(vocab_size**length)
    place_L = vocab_size ** torch.arange(length - 1, -1, -1)
    return number_X[:, None] // place_L % vocab_size


def enumerated_entropy(task: ExactTask) -> float:
    """`-sum_x p(x) log p(x)` over all sequences, nats."""
    p_X = task.log_prob(all_sequences(task.vocab_size, task.length)).exp()
    return entropy(p_X).item()


def enumerated_support(task: ExactTask) -> Tensor | None:
    """Sequences with p > 0, (C, L), or None where V^L is more than `ENUMERABLE`."""
    if not is_enumerable(task.vocab_size, task.length):
        return None
    x_XL = all_sequences(task.vocab_size, task.length)
    return x_XL[torch.isfinite(task.log_prob(x_XL))]


def entropy(p: Tensor) -> Tensor:
    """Entropy over the last axis, nats; 0 log 0 = 0."""
    return torch.special.entr(p).sum(-1)


def mean_and_error(values_N: Tensor) -> tuple[float, float]:
    """Mean of independent draws and its standard error."""
    return values_N.mean().item(), (values_N.std() / math.sqrt(len(values_N))).item()


def checked_ids(x_NL: Tensor, known_NL: Tensor | None, vocab_size: int) -> Tensor:
    """`x_NL` as int64 with ids at unknown positions brought into range; ValueError for a known id outside [0, V)."""
    x_NL = x_NL.long()
    outside_NL = (x_NL < 0) | (x_NL >= vocab_size)
    if known_NL is not None:
        outside_NL = outside_NL & known_NL
    if outside_NL.any():
        raise ValueError(f"a known token has the id {x_NL[outside_NL][0].item()}, outside [0, {vocab_size})")
    return x_NL.clamp(0, vocab_size - 1)


def one_hot(x_NL: Tensor, known_NL: Tensor | None, vocab_size: int) -> Tensor:
    """(N, L, V) float64, 1 at the id of each known position, 0 everywhere else."""
    x_NL = checked_ids(x_NL, known_NL, vocab_size)
    value_NL = torch.ones_like(x_NL) if known_NL is None else known_NL
    hot_NLV = torch.zeros((*x_NL.shape, vocab_size), dtype=torch.float64, device=x_NL.device)
    return hot_NLV.scatter_(2, x_NL[..., None], value_NL.double()[..., None])


def with_point_masses(log_p_NLV: Tensor, x_NL: Tensor, known_NL: Tensor) -> Tensor:
    """`log_p_NLV` with all mass on the given id at known positions."""
    vocab_size = log_p_NLV.shape[-1]
    point_NLV = one_hot(x_NL, known_NL, vocab_size).log()
    return torch.where(known_NL[..., None], point_NLV, log_p_NLV)


def blocks(n: int) -> Iterator[slice]:
    """Slices that cut n rows into blocks which fit into memory."""
    for start in range(0, n, _ROWS_A_BLOCK):
        yield slice(start, min(start + _ROWS_A_BLOCK, n))
