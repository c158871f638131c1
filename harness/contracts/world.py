"""The tiny world that contracts are checked in, and how one is broken.

V = 7 symbols, L = 8 tokens, one block of width 16; its law is known, for methods that need it, and ids have a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.registry import build_options
from harness.data.base import TokenData
from harness.interface import Method, Problem, Sampler
from harness.nn.transformer import TrunkShape
from harness.tasks.templates import Templates

#: A part of a contract: raises `Broken` (or whatever the code itself raises) where what the function builds fails it. The
#: argument of the function is the seed of its weights. The first line of its docstring is what it asks for.
Check = Callable[[Callable[[int], Any]], None]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Broken(AssertionError):
    """A contract that is not kept, in one line."""


def must(ok: object, reason: str) -> None:
    """Raise `Broken` with the reason unless `ok`."""
    if not ok:
        raise Broken(reason)


def decode(ids: Sequence[int] | np.ndarray) -> str:
    """A letter for each id."""
    return "".join(_LETTERS[int(i)] for i in ids)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_problem(vocab_size: int = 7, length: int = 8, width: int = 16, depth: int = 1) -> Problem:
    """A problem without a truth."""
    return Problem(vocab_size, length, TrunkShape(width=width, depth=depth, heads=2, mlp_ratio=2.0))


def token_data(problem: Problem, rows: int = 60, seed: int = 0) -> TokenData:
    """Sequences with something to learn: each token is the one before it plus 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        start = rng.integers(problem.vocab_size, size=(count, 1))
        steps = rng.integers(2, size=(count, problem.length - 1)).cumsum(1)
        return ((np.concatenate((start, start + steps), axis=1)) % problem.vocab_size).astype(np.uint16)

    splits = {"train": draw(rows), "valid": draw(8), "test": draw(8)}
    return TokenData("toy", problem.vocab_size, problem.length, splits, "toy", str)


def scramble(module: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """Add noise to every parameter that is trained, so that heads which start at zero say something."""
    generator = generator_of(seed)
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, module.parameters()):
            p.add_(std * torch.randn(p.shape, generator=generator))
    return module


V, L = 7, 8
PROBLEM = Problem(
    V, L, tiny_problem().shape, truth=Templates(L, classes=3, symbols=V, accuracy=0.6), decode=decode
)  # fmt: skip
TRAIN_NL = token_data(PROBLEM).splits["train"]
#: A batch.
X: Tensor = torch.from_numpy(TRAIN_NL[:16].astype(np.int64))


def build_method(node: dict[str, Any], seed: int = 0) -> Method:
    """The method of a node of the configuration, with weights that say something, ready to sample; raises `UserError`."""
    cls, options = build_options(node)
    torch.manual_seed(seed)
    method = cls(PROBLEM, options)
    scramble(method, seed, std=0.1)
    method.fit(TRAIN_NL)
    method.settle(TRAIN_NL[:8])
    for stage in method.stages():
        method.set_stage(stage.name)
        method.calibrate(X)
    return method.eval()


def build_sampler(node: dict[str, Any], method: dict[str, Any], seed: int = 0) -> Sampler:
    """The sampler of a node of the configuration on the method of another; raises `UserError`."""
    cls, options = build_options(node)
    return cls(build_method(method, seed), options)
