"""The floor of samplers that draw the positions of one step independently: KL(p || q_order), from exact conditionals.

A step reveals the positions ranked N_{k-1} + 1 .. N_k by a random order, each from its own conditional given what was
revealed before the step. No masked model with that plan can be nearer to p.

Shapes: D draws (a sequence and an order each), L tokens, V symbols, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from harness.tasks.base import ExactTask
from harness.tasks.parts import entropy


def equal_counts(length: int, steps: int) -> tuple[int, ...]:
    """Cumulative revealed counts 0 = N_0 < ... < N_K = L of K steps as equal as they can be."""
    if not 1 <= steps <= length:
        raise UserError(f"{steps} steps cannot each reveal one of {length} tokens; use {min(max(steps, 1), length)}")
    return tuple(length * k // steps for k in range(steps + 1))


def _check_counts(counts: Sequence[int], length: int) -> None:
    rises = all(a < b for a, b in zip(counts, counts[1:], strict=False))
    if len(counts) < 2 or counts[0] != 0 or counts[-1] != length or not rises:
        raise UserError(
            f"revealed counts {list(counts)} do not rise from 0 to {length}; use [0, {length}] for one step"
        )


def _draw(task: ExactTask, draws: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Sequences from p (D, L), and each position's rank in a random order (D, L)."""
    x_DL = torch.from_numpy(task.sample(draws, rng))
    return x_DL, torch.from_numpy(rng.permuted(np.tile(np.arange(task.length), (draws, 1)), axis=1))


def factorised_floor(
    task: ExactTask, counts: Sequence[int], orders: int, rng: np.random.Generator
) -> tuple[float, float]:
    """`E_order KL(p || q_order)` in nats and its standard error, from `orders` draws of a sequence and an order.

    The mean of `log p(x) - sum_k sum_{i revealed in step k} log p(x_i | x revealed before step k)`; `counts` are the
    cumulative revealed counts 0 = N_0 < ... < N_K = L. Raises `UserError` for counts that do not rise from 0 to L.
    """
    _check_counts(counts, task.length)
    x_DL, rank_DL = _draw(task, orders, rng)
    gap_D = task.log_prob(x_DL)
    for start, end in zip(counts, counts[1:], strict=False):
        log_p_DLV = task.conditionals(x_DL, rank_DL < start)
        log_p_DL = log_p_DLV.gather(2, x_DL[..., None])[..., 0]
        gap_D = gap_D - torch.where((rank_DL >= start) & (rank_DL < end), log_p_DL, 0.0).sum(1)
    return gap_D.mean().item(), (gap_D.std() / orders**0.5).item()


def h_curves(task: ExactTask, rng: np.random.Generator, draws: int) -> np.ndarray:
    """(D, L) nats: for each draw and m = 0 .. L-1 the mean of H(X_i | x_S) over i outside S, S the first m of its order."""
    x_DL, rank_DL = _draw(task, draws, rng)
    h_DL = np.empty(x_DL.shape)
    for m in range(task.length):
        p_DLV = task.conditionals(x_DL, rank_DL < m).exp()
        h_DL[:, m] = entropy(p_DLV).sum(1) / (task.length - m)  # known positions have entropy 0
    return h_DL


def h_curve(task: ExactTask, rng: np.random.Generator, draws: int) -> np.ndarray:
    """(L,) nats: h_m, the mean conditional entropy H(X_i | X_S) over random S of size m and i outside it.

    Its sum is H(X), by the chain rule; h_0 is the mean marginal entropy.
    """
    return h_curves(task, rng, draws).mean(0)


def formula_floor(h_L: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """`sum_k sum_{j = N_{k-1}+1 .. N_k} (h_{N_{k-1}} - h_{j-1})` over the last axis of `h_L`, nats.

    What `factorised_floor` estimates, from the curve alone; at K = 1 it is the total correlation. Raises `UserError` for
    counts that do not rise from 0 to L.
    """
    length = h_L.shape[-1]
    _check_counts(counts, length)
    start_L = np.empty(length, dtype=np.int64)
    for start, end in zip(counts, counts[1:], strict=False):
        start_L[start:end] = start
    return (h_L[..., start_L] - h_L).sum(-1)
