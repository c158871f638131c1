"""Counting what sampling and training cost: network calls by hooks, FLOPs by torch's counter.

Nothing here trusts what a method says: a call is a forward call of one of `Method.networks()`.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.config.schema import TrainConfig
from harness.diffusion import masked
from harness.diffusion.schedules import stratified_times
from harness.errors import BudgetError
from harness.interface import Method, Problem, Sampler
from harness.nn.networks import TokenNetwork
from harness.training.optimizer import rehearse_step
from harness.training.seeds import step_generator

#: Sequences of a draw whose FLOPs are counted: products of weights alone, such as tables of codes, are shared by all of it.
COUNTED_SEQUENCES = 16


@contextmanager
def counted_calls(sampler: Sampler) -> Iterator[Counter[str]]:
    """Count forward calls of each of the sampler's networks inside the block, by name.

    Of an adaptive sampler: each call times the sequences that it is of, the rows of its first argument.
    """
    calls: Counter[str] = Counter()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] += len(inputs[0]) if sampler.adaptive else 1

        return hook

    handles = [net.register_forward_pre_hook(hook_of(name)) for name, net in sampler.networks().items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _product(a_shape: Sequence[int], b_shape: Sequence[int]) -> int:
    """2 I J K for (..., I, J) times (..., J, K) or (..., J)."""
    return 2 * math.prod(a_shape) * (b_shape[-1] if len(b_shape) > 1 else 1)


#: Products that torch's counter passes over: in place, and of vectors.
_UNCOUNTED: dict[Any, Any] = {
    torch.ops.aten.addmm_: lambda _, a, b, **__: _product(a, b),
    torch.ops.aten.baddbmm_: lambda _, a, b, **__: _product(a, b),
    torch.ops.aten.mv: lambda a, b, **_: _product(a, b),
    torch.ops.aten.addmv: lambda _, a, b, **__: _product(a, b),
    torch.ops.aten.addmv_: lambda _, a, b, **__: _product(a, b),
    torch.ops.aten.dot: lambda a, b, **_: _product(a, b),
    torch.ops.aten.addr: lambda _, a, b, **__: 2 * math.prod(a) * math.prod(b),
    torch.ops.aten.addr_: lambda _, a, b, **__: 2 * math.prod(a) * math.prod(b),
}


def count_flops(run: Callable[[], object]) -> int:
    """Floating point operations of all matrix products and convolutions in `run()`, in torch; numpy's are not seen."""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        run()
    return counter.get_total_flops()


@functools.lru_cache(maxsize=8)  # each row and each sampler of a study asks, and the network may be large
def full_call_flops(problem: Problem) -> int:
    """FLOPs for one sequence of one call of the plain masked denoiser: trunk, and LM head at every position.

    The unit of equivalent NFE. A sampler that runs the head only where a token is drawn spends a little less.
    """
    network = TokenNetwork(problem.shape, problem.vocab_size)
    x_1L = torch.zeros((1, problem.length), dtype=torch.int64)
    with torch.no_grad():
        return count_flops(lambda: network(x_1L).whole())


def stage_flops(method: Method, train: TrainConfig, x_BL: Tensor, keys: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """FLOPs of a training step on parts like `x_BL`, one number for each of the method's stages: the mean over draws.

    They are those of the loss and its gradient, for each of `train.accumulate` parts, and of the optimizer's own products:
    a whole batch need not fit in memory. Each draw has a generator of its own,
    of one of `keys`. Whatever the loss keeps (a bank of latents) is changed as by a step of training; the parameters and
    their gradients are not.
    """
    counted = []
    for stage in method.stages():
        method.set_stage(stage.name)
        flops = _mean_flops(lambda g: method.loss(x_BL, g).total.backward(), x_BL, keys)
        counted.append(train.accumulate * flops + count_flops(lambda: rehearse_step(method, train)))
        method.zero_grad(set_to_none=True)
    return tuple(counted)


def reference_step_flops(problem: Problem, train: TrainConfig, x_BL: Tensor, keys: Sequence[tuple[int, ...]]) -> int:
    """FLOPs of a training step of the plain masked denoiser of the study's shape on parts like `x_BL`: the mean over draws.

    One uniform time for each sequence, the LM head at the masked positions alone.
    """
    with torch.random.fork_rng(devices=[]):
        network = TokenNetwork(problem.shape, problem.vocab_size).to(x_BL.device)

    def step(generator: torch.Generator) -> None:
        alpha_B = 1.0 - stratified_times(x_BL.shape[0], generator)
        xt_BL, masked_BL = masked.mask_tokens(x_BL, alpha_B, problem.vocab_size, generator)
        masked.masked_nll(network(xt_BL, masked_BL), x_BL, masked_BL).sum().backward()

    return train.accumulate * _mean_flops(step, x_BL, keys) + count_flops(lambda: rehearse_step(network, train))


def _mean_flops(step: Callable[[torch.Generator], object], x_BL: Tensor, keys: Sequence[tuple[int, ...]]) -> int:
    generators = [step_generator(str(x_BL.device), *key) for key in keys]
    return round(sum(count_flops(functools.partial(step, generator)) for generator in generators) / len(keys))


def unmet_budgets(sampler: Sampler, wanted: list[int]) -> dict[int, str]:
    """The budgets of `wanted` that apply to a sampler and that it cannot meet exactly, with the reason."""
    unmet = {}
    for nfe in sampler.budgets(tuple(wanted)):
        try:
            sampler.check_budget(nfe)
        except BudgetError as error:
            unmet[nfe] = str(error)
    return unmet


def parse_budgets(sampler: Sampler, wanted: list[int], skip: bool = False) -> tuple[int, ...]:
    """The budgets at which a sampler runs; raises `BudgetError` for one that it cannot meet exactly.

    With `skip` it is left out instead, and the error is raised only where none remains.
    """
    unmet = unmet_budgets(sampler, wanted)
    met = tuple(nfe for nfe in sampler.budgets(tuple(wanted)) if nfe not in unmet)
    if unmet and not (skip and met):
        raise BudgetError(next(iter(unmet.values())))
    return met
