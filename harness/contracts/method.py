"""What a method owes the harness: training, the bound, checkpoints. Each function builds it anew and raises `Broken`.

Shapes: B batch, L tokens.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.contracts.world import Check, L, V, X, generator_of, must
from harness.interface import Method
from harness.training.checkpoint import load_model, load_tensors, save_tensors

Build = Callable[[int], Method]
ROLES = ("method", "reference", "floor")


def names(build: Build) -> None:
    """it has a title, a role and options"""
    method = build(0)
    must(method.title, f"{type(method).__name__}.title is empty")
    must(method.role in ROLES, f"role={method.role!r} is none of {', '.join(ROLES)}")
    must(dataclasses.is_dataclass(type(method).Options), f"{type(method).__name__}.Options is no dataclass")


# ---- training -------------------------------------------------------------------------------------------------------
def stages(build: Build) -> None:
    """its stages differ in name and have shares that sum to 1"""
    method = build(0)
    found = method.stages()
    if not found:
        left = any(p.requires_grad for p in method.parameters())
        must(not left, "it has parameters that want a gradient, and no stage that trains them")
        _refuses_loss(method)
        return
    total = sum(stage.share for stage in found)
    must(math.isclose(total, 1.0, abs_tol=1e-6), f"shares of the stages sum to {total}")
    must(all(stage.share > 0 for stage in found), "a stage has no share of the steps")
    must(len({stage.name for stage in found}) == len(found), "two stages have one name")


def _refuses_loss(method: Method) -> None:
    try:
        method.loss(X, generator_of(0))
    except NotImplementedError:
        return
    must(False, "it has a loss, and no stage that uses it")


def gradients(build: Build) -> None:
    """its loss is finite and reaches exactly what the stage trains"""
    method, trained = build(0), set[str]()
    for stage in method.stages():
        method.train()
        method.set_stage(stage.name)
        method.zero_grad(set_to_none=True)
        loss = method.loss(X, generator_of(1))
        must(loss.total.shape == (), f"the loss has the shape {tuple(loss.total.shape)}; it is one number")
        must(loss.total.dtype == torch.float32, f"the loss is {loss.total.dtype}; it is float32")
        must(torch.isfinite(loss.total), f"the loss is {loss.total.item()}")
        must(loss.parts, "the loss names no parts for the curves")
        for name, part in loss.parts.items():
            must(torch.isfinite(part) and not part.requires_grad, f"part {name} of the loss is not finite and detached")
        loss.total.backward()
        trained |= _reached(method, stage.name)
    left = sorted(n for n, _ in method.named_parameters() if n not in trained and not _idle(method, n))
    if method.stages():
        must(not left, f"no stage trains {', '.join(left)}")


def _idle(method: Method, name: str) -> bool:
    return any(part in name for part in method.idle)


def _reached(method: Method, stage: str) -> set[str]:
    """Names of the parameters with a gradient: those that the stage trains and no other."""
    found = set()
    for name, p in method.named_parameters():
        reached = p.grad is not None and bool(p.grad.abs().max() > 0)
        must(p.grad is None or torch.isfinite(p.grad).all(), f"the gradient of {name} is not finite in stage {stage}")
        if reached:
            found.add(name)
        if not _idle(method, name):
            must(reached or not p.requires_grad, f"the loss does not reach {name}, which stage {stage} trains")
            must(p.requires_grad or not reached, f"the loss reaches {name}, which stage {stage} does not train")
    return found


def smallest_part(build: Build) -> None:
    """it trains on as few sequences as `smallest_part` says"""
    method = build(0)
    for stage in method.stages():
        method.train().set_stage(stage.name)
        loss = method.loss(X[: method.smallest_part], generator_of(1)).total
        loss.backward()
        must(torch.isfinite(loss), f"the loss of {method.smallest_part} sequences is {loss.item()}")


def repeatable(build: Build) -> None:
    """its loss depends on the generator, and on no other chance"""
    method = build(0)
    for stage in method.stages():
        method.eval().set_stage(stage.name)
        # A method may keep statistics of what it has seen, as long as they are in its state.
        state = {name: value.clone() for name, value in method.state_dict().items()}
        torch.manual_seed(0)
        first = method.loss(X, generator_of(2)).total
        torch.manual_seed(1)
        method.load_state_dict(state)
        same = torch.equal(first, method.loss(X, generator_of(2)).total)
        must(same, f"the loss of stage {stage.name} changes with torch's global seed; draw from the generator")
        method.load_state_dict(state)
        other = method.loss(X, generator_of(3)).total
        moves = not torch.equal(first, other) or method.role == "reference"
        must(moves, f"the loss of stage {stage.name} is the same for every generator")


def stages_again(build: Build) -> None:
    """its stages can be set again in any order, as a resumed run does"""
    method = build(0)
    found = [stage.name for stage in method.stages()]
    for first in found:
        for second in found:
            method.set_stage(first)
            expected = [p.requires_grad for p in method.parameters()]
            method.set_stage(second)
            method.set_stage(first)
            same = [p.requires_grad for p in method.parameters()] == expected
            must(same, f"stage {first} trains other parameters after stage {second}")


# ---- likelihood -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def bound(build: Build) -> None:
    """its bound is None, or a finite float64 for each sequence"""
    method = build(0)
    found = method.bound(X, generator_of(4))
    if found is None:
        return
    must(found.total_B.shape == (len(X),), f"the bound has the shape {tuple(found.total_B.shape)}, not ({len(X)},)")
    must(torch.isfinite(found.total_B).all(), "the bound is not finite")
    must(found.total_B.dtype == torch.float64, f"the bound is {found.total_B.dtype}; what is averaged is float64")
    must(found.estimator, "the bound does not name its estimator")
    must(torch.equal(found.total_B, _total(method, 4)), "the bound of equal generators differs")
    if found.parts_B:
        parts_B = torch.stack(list(found.parts_B.values())).sum(0).double()
        must(torch.allclose(parts_B, found.total_B), "the parts of the bound do not sum to it")
    must(not found.exact or torch.equal(found.total_B, _total(method, 5)), "the bound is called exact and is drawn")


def _total(method: Method, seed: int, x_BL: Tensor = X) -> Tensor:
    """The bound; zeros where there is none."""
    found = method.bound(x_BL, generator_of(seed))
    return torch.zeros(len(x_BL)) if found is None else found.total_B


@torch.no_grad()
def bound_of_all(build: Build) -> None:
    """its bound of one sequence, and of every id, is finite"""
    method = build(0)
    # A batch of one is the last chunk of some test sets.
    for x_BL in (X[:1], torch.arange(V).repeat(L).view(V, L)):
        must(torch.isfinite(_total(method, 6, x_BL)).all(), f"the bound of {len(x_BL)} sequences is not finite")


@torch.no_grad()
def instruments(build: Build) -> None:
    """what it measures of itself is finite"""
    for name, value in build(0).diagnose(X, generator_of(7)).items():
        must(math.isfinite(value), f"the instrument {name} is {value}")


def checkpoints(build: Build) -> None:
    """its weights come back from a checkpoint, with the same bound"""
    method, other = build(0), build(1)
    if not method.stages():
        return  # counted again from the data, nothing is stored
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_tensors(path, dict(method.state_dict()), {"note": "kept"})
        tensors, meta = load_tensors(path)
        load_model(other, tensors, path)
    must(meta == {"note": "kept"}, "the note of the checkpoint is lost")
    for name, value in method.state_dict().items():
        must(torch.equal(value, other.state_dict()[name]), f"{name} is not what was stored")
    same = torch.equal(_total(method, 8), _total(other, 8))
    must(same, "the bound is another one with the stored weights: not all that it reads is in the state dict")


CHECKS: tuple[Check, ...] = (
    names, stages, gradients, smallest_part, repeatable, stages_again, bound, bound_of_all, instruments, checkpoints,
)  # fmt: skip
