"""Counting what sampling and training cost: network calls by hooks, FLOPs by torch's counter.

Nothing here trusts what a method says: a call is a forward call of one of `Method.networks()`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import BudgetError
from harness.interface import Method, Problem
from harness.nn.networks import TokenNetwork


@contextmanager
def counted_calls(method: Method) -> Iterator[Counter[str]]:
    """Count forward calls of each of the method's networks inside the block, by name."""
    calls: Counter[str] = Counter()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            calls[name] += 1

        return hook

    handles = [net.register_forward_pre_hook(hook_of(name)) for name, net in method.networks().items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def count_flops(run: Callable[[], object]) -> int:
    """Floating point operations of the matrix products in `run()`, as torch's flop counter sees them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def full_call_flops(problem: Problem) -> int:
    """FLOPs for one sequence of one call of the plain masked denoiser: trunk, and LM head at every position.

    The unit of equivalent NFE. A sampler that runs the head only where a token is drawn spends a little less.
    """
    network = TokenNetwork(problem.shape, problem.vocab_size)
    x_1L = torch.zeros((1, problem.length), dtype=torch.int64)
    with torch.no_grad():
        return count_flops(lambda: network(x_1L))


def unmet_budgets(method: Method, wanted: list[int]) -> dict[int, str]:
    """The budgets of `wanted` that apply to a method and that it cannot meet exactly, with the reason."""
    unmet = {}
    for nfe in method.budgets(tuple(wanted)):
        try:
            method.check_budget(nfe)
        except BudgetError as error:
            unmet[nfe] = str(error)
    return unmet


def parse_budgets(method: Method, wanted: list[int], skip: bool = False) -> tuple[int, ...]:
    """The budgets at which a method runs; raises `BudgetError` for one that it cannot meet exactly.

    With `skip` it is left out instead, and the error is raised only where none remains.
    """
    unmet = unmet_budgets(method, wanted)
    met = tuple(nfe for nfe in method.budgets(tuple(wanted)) if nfe not in unmet)
    if unmet and not (skip and met):
        raise BudgetError(next(iter(unmet.values())))
    return met
