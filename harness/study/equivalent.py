"""Budgets of equal sampling FLOPs: how many calls of its networks a sampler can have for so many calls of the baseline's.

A strict count charges a network over a few slots like one over all tokens. Here a budget of E buys what E calls of the plain
masked network cost, and a sampler spends it on as many calls as fit, never on more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from harness.errors import BudgetError, UserError
from harness.interface import Sampler
from harness.nn.slices import unshared
from harness.store import read_json, write_json
from harness.study.budget import COUNTED_SEQUENCES, count_flops, full_call_flops
from harness.training.seeds import step_generator

#: Calls that one call of the baseline can buy at most; a sampler whose networks cost less than that ends there.
_MOST = 16


def most_calls(cost: Callable[[int], float], limit: float) -> int:
    """The largest K up to `16 limit` with `cost(K) <= limit`, 0 where there is none; `cost` does not fall with K."""
    low, high, k = 0, int(_MOST * limit) + 1, max(1, int(limit))
    while high - low > 1:
        k = min(max(k, low + 1), high - 1)
        own = cost(k)
        low, high = (k, high) if own <= limit else (low, k)
        # Costs are nearly proportional to K: the next guess is where the line through 0 meets the limit, then beside it.
        guess = int(k * limit / own) if own > 0 else high - 1
        k = guess if guess not in (low, high) else low + 1 if guess == low else high - 1
    return low


def equal_budgets(sampler: Sampler, limits: list[float], file: Path) -> tuple[int, ...]:
    """The budgets K of a sampler for those `limits`, in calls of the plain masked network; none twice.

    Samplers with budgets of their own (one call a token, no call at all) have none. What was counted is kept in `file`.
    """
    if not limits or sampler.budgets((2,)) != (2,):
        return ()
    if sampler.adaptive:  # how much a sequence costs depends on the weights; in the mean it has at most so many calls
        return tuple(dict.fromkeys(k for limit in limits if (k := _met_below(int(limit), _meets(sampler)))))
    counted = _read(file)
    known = dict(counted)
    unit, met = full_call_flops(sampler.method.problem), _meets(sampler)

    def cost(k: int) -> float:
        """In calls of the plain network; a budget that cannot be met costs what the next one does that can."""
        while not met(k) and k < int(_MOST * max(limits)) + 1:
            k += 1
        if str(k) not in known:
            known[str(k)] = _flops(sampler, k)
        return known[str(k)] / unit

    found = (_met_below(most_calls(cost, limit), met) for limit in limits)
    budgets = tuple(dict.fromkeys(k for k in found if k))
    if known != counted:
        write_json(file, known)
    return budgets


def _meets(sampler: Sampler) -> Callable[[int], bool]:
    @functools.cache
    def met(k: int) -> bool:
        try:
            sampler.check_budget(k)
        except BudgetError:
            return False
        return True

    return met


def _met_below(k: int, met: Callable[[int], bool]) -> int:
    return next((j for j in range(k, 0, -1) if met(j)), 0)


def _read(file: Path) -> dict[str, int]:
    try:
        return {k: int(v) for k, v in read_json(file).items()} if file.exists() else {}
    except (UserError, ValueError, AttributeError):
        return {}  # it costs seconds to count again


def _flops(sampler: Sampler, nfe: int) -> int:
    """FLOPs for one of `COUNTED_SEQUENCES` at a budget; networks need no training for that.

    From draws of one and of two: what the second adds, and a share of what does not grow with their number.
    """

    def drawn(n: int) -> int:
        return count_flops(functools.partial(sampler.draw, n, nfe, step_generator("cpu", 0)))

    with torch.compiler.set_stance("force_eager"), torch.no_grad(), unshared():
        one, two = drawn(1), drawn(2)
    return two - one + round((2 * one - two) / COUNTED_SEQUENCES)
