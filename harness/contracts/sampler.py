"""What a sampler owes the harness: exact budgets, clean draws in float64, chance from one generator alone.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from harness.contracts.world import PROBLEM, Check, L, X, generator_of, must
from harness.errors import BudgetError, UserError
from harness.interface import Draw, Method, Sampler
from harness.study.cells import Part
from harness.study.sampling import checked_draw

Build = Callable[[int], Sampler]
WANTED = (1, 2, 3, 4, 7, L, 2 * L)


class _Stranger(Method):
    """A method that no sampler knows."""

    Options = SimpleNamespace
    title = "Stranger"

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> None:
        return None


def accepts(sampler: Sampler, nfe: int) -> bool:
    """Whether the sampler says that it can meet a budget."""
    try:
        sampler.check_budget(nfe)
    except BudgetError:
        return False
    return True


def runnable(sampler: Sampler) -> list[int]:
    """Every wanted budget that the sampler says it can meet."""
    return [nfe for nfe in sampler.budgets(WANTED) if accepts(sampler, nfe)]


def ends(sampler: Sampler) -> list[int]:
    """The least and the largest budget that the sampler can meet: what holds at both is not drawn at those between."""
    return sorted({runnable(sampler)[0], runnable(sampler)[-1]})


def draw(sampler: Sampler, nfe: int, seed: int = 0, n: int = 12, temperature: float = 1.0) -> Draw:
    """A draw as the harness makes it: calls counted by hooks; refuses masks, wrong shapes and draws not in float64."""
    with torch.inference_mode():
        return checked_draw(sampler, n, Part(nfe, temperature), generator_of(seed))


def names(build: Build) -> None:
    """it has a title, a role, options and no weights"""
    sampler = build(0)
    begins = sampler.method.title.split(",")[0]
    must(sampler.title.startswith(begins), f"the title '{sampler.title}' does not begin with '{begins}'")
    must(sampler.role in ("", "probe"), f"role={sampler.role!r} is neither '' nor 'probe'")
    must(dataclasses.is_dataclass(type(sampler).Options), f"{type(sampler).__name__}.Options is no dataclass")
    must(not isinstance(sampler, nn.Module), "it is a module; weights belong to the method")


def strangers(build: Build) -> None:
    """a method that it cannot draw from is refused in one line"""
    sampler = build(0)
    if issubclass(_Stranger, sampler.methods):
        return
    try:
        type(sampler)(_Stranger(PROBLEM, None), sampler.options)
    except UserError as error:
        must("draws from" in str(error) and "\n" not in str(error), f"it is refused in other words: {error}")
        return
    must(False, "it takes a method of a class that is not in `methods`; call super().__init__")


def budgets(build: Build) -> None:
    """budgets are met exactly: whole sequences, drawn in float64"""
    sampler = build(0)
    must(runnable(sampler), f"it can run at none of {', '.join(map(str, WANTED))} calls")
    for nfe in runnable(sampler):
        drawn = draw(sampler, nfe)
        must(min(drawn.nfe_latent, drawn.nfe_token) >= 0, f"a part of {drawn.nfe} calls is negative")
        must(drawn.x_NL.dtype == torch.int64, f"ids are {drawn.x_NL.dtype}; they are int64")


def refusals(build: Build) -> None:
    """a budget that it cannot meet is refused, with one that it can"""
    sampler = build(0)
    refused = [nfe for nfe in (-1, 0, 1, 2, 3, L, 1000) if not accepts(sampler, nfe)]
    must(-1 in refused, "it accepts -1 calls; check_budget raises BudgetError")
    for nfe in refused:
        text = _refusal(lambda nfe=nfe: sampler.check_budget(nfe))  # type: ignore[misc]
        must(
            "\n" not in text and f"nfe={nfe}" in text and sampler.title in text,
            f"says neither budget nor title: {text}",
        )
        advised = re.search(r"use (\d+)", text)
        must(advised, f"advises no budget such as 'use 4': {text}")
        nearest = int(advised[1]) if advised else 0
        must(accepts(sampler, nearest) and draw(sampler, nearest, n=2).nfe == nearest, f"{nearest} is advised, not met")
        must(_refusal(lambda nfe=nfe: sampler.draw(2, nfe, generator_of(0))), f"draw() runs at {nfe} calls")  # type: ignore[misc]


def _refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except BudgetError as error:
        return str(error)
    return ""


def repeatable(build: Build) -> None:
    """its draws depend on the generator, and on no other chance"""
    sampler = build(0)
    nfe = runnable(sampler)[-1]
    torch.manual_seed(0)
    first = draw(sampler, nfe, seed=1).x_NL
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    must(torch.equal(first, draw(sampler, nfe, seed=1).x_NL), "draws change with a global seed; use the generator")
    must(not torch.equal(first, draw(sampler, nfe, seed=2).x_NL), "two generators give the same draws")


def variety(build: Build) -> None:
    """sequences of a draw differ"""
    sampler = build(0)
    for nfe in ends(sampler):
        kinds = len(draw(sampler, nfe).x_NL.unique(dim=0))
        must(kinds > 6, f"12 sequences at NFE {nfe} are {kinds} different ones")


def temperatures(build: Build) -> None:
    """it draws a single sequence; cold ones differ no more than warm ones"""
    sampler = build(0)
    for nfe in ends(sampler):
        must(draw(sampler, nfe, n=1).x_NL.shape == (1, L), "a draw of one sequence has another shape")
        if sampler.method.role == "method":
            cold, warm = (len(draw(sampler, nfe, n=100, temperature=t).x_NL.unique(dim=0)) for t in (0.05, 1.0))
            # A tenth is chance: a latent stays warm, and a sampler of long sequences may draw a hundred different ones.
            must(cold <= 1.1 * warm, f"{cold} different sequences at temperature 0.05, {warm} at 1.0")


def weights_stay(build: Build) -> None:
    """drawing leaves the weights as they are"""
    sampler = build(0)
    before = {name: value.clone() for name, value in sampler.method.state_dict().items()}
    draw(sampler, runnable(sampler)[-1])
    for name, value in sampler.method.state_dict().items():
        must(torch.equal(before[name], value), f"drawing changes {name}")


@torch.no_grad()
def bound(build: Build) -> None:
    """its bound is there where `bounded` says so, and finite"""
    sampler = build(0)
    found = sampler.bound(X, generator_of(4))
    must((found is None) == (not sampler.bounded), f"bounded={sampler.bounded}, and the bound is {found}")
    good = found is None or (found.total_B.shape == (len(X),) and torch.isfinite(found.total_B).all())
    must(good, "the bound is not one finite value for each sequence")


@torch.no_grad()
def paths(build: Build) -> None:
    """its path likelihoods, if any, are finite and repeatable"""
    sampler = build(0)
    for nfe in filter(None, runnable(sampler)):
        nll_B = sampler.path_nll(X, nfe, generator_of(9))
        if nll_B is None:
            continue
        must(nll_B.shape == (len(X),) and nll_B.dtype == torch.float64, "path_nll is not (B,) float64")
        must(torch.isfinite(nll_B).all() and bool((nll_B > 0).all()), "path_nll is not finite and positive")
        again, other = (sampler.path_nll(X, nfe, generator_of(seed)) for seed in (9, 10))
        must(again is not None and torch.equal(nll_B, again), "path_nll differs for equal generators")
        must(nfe == 1 or other is not None and not torch.equal(nll_B, other), "path_nll is that of one path")


def fills(build: Build) -> None:
    """it keeps what it is given, where it says that it can be given tokens"""
    sampler = build(0)
    hidden_NL = torch.arange(L).expand(X.shape) % 2 == 1
    for nfe in runnable(sampler) if sampler.fills else ():
        with torch.inference_mode():
            drawn = checked_draw(sampler, len(X), Part(nfe, 1.0), generator_of(0), (X, hidden_NL))
        must(not torch.equal(drawn.x_NL, X), "it fills in exactly what was hidden from it")


def same_weights(build: Build) -> None:
    """the same weights give the same draws, others give others"""
    first, other = build(0), build(1)
    nfe = runnable(first)[len(runnable(first)) // 2]
    x_NL = draw(first, nfe, n=40).x_NL
    if first.method.stages():
        must(not torch.equal(x_NL, draw(other, nfe, n=40).x_NL), "other weights give the same draws")
        other.method.load_state_dict(first.method.state_dict())
    must(torch.equal(x_NL, draw(other, nfe, n=40).x_NL), "the same weights give other draws")


CHECKS: tuple[Check, ...] = (
    names, strangers, budgets, refusals, repeatable, variety, temperatures, weights_stay, bound, paths, fills, same_weights,
)  # fmt: skip
