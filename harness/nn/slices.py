"""Networks that are only read, in slices: of sequences through a trunk, of rows through the head over the vocabulary.

Where no gradient is wanted nothing has to be kept, so that memory need not grow with what is read at a time. Random draws
are made before, for all sequences: how they are sliced changes no number but for the rounding of a matrix product.

Shapes: B sequences, L tokens, M selected positions, R of them in a slice, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TOKENS = ContextVar("tokens read at a time", default=1 << 15)
_SHARING = ContextVar("sequences that are the same are read once", default=True)

#: Numbers for each token and symbol that are held at a time, where they are wanted for a while: 256 MiB in float32.
HELD = 1 << 26


@contextmanager
def at_most(tokens: int) -> Iterator[None]:
    """Inside, networks without gradient and judges read at most so many tokens at a time, and one sequence at least."""
    before = _TOKENS.set(tokens)
    try:
        yield
    finally:
        _TOKENS.reset(before)


@contextmanager
def unshared() -> Iterator[None]:
    """Inside, each sequence of a call is read for itself: for counting what one of them costs."""
    before = _SHARING.set(False)
    try:
        yield
    finally:
        _SHARING.reset(before)


def all_alike(x_BL: Tensor, t_B: Tensor | None = None) -> bool:
    """Whether all sequences of a call without gradient are the same, at the same time: a sampler's first, of masks alone."""
    if torch.is_grad_enabled() or len(x_BL) < 2 or not _SHARING.get():
        return False
    return bool((x_BL == x_BL[:1]).all()) and (t_B is None or bool((t_B == t_B[:1]).all()))


def tokens_at_a_time() -> int:
    """What `at_most` has set, or else 32768."""
    return _TOKENS.get()


def by_sequences(run: Callable[..., Any], x_BL: Tensor, *others: Tensor | None, width: int = 1) -> Any:
    """`run(x_BL, *others)`, a tensor or a tuple of them, on slices of sequences that are put together.

    `x_BL` says how many tokens a sequence has; `run` makes `width` numbers for each. In one piece where a gradient is
    wanted, or where all may be read at a time.
    """
    rows = max(1, min(tokens_at_a_time(), HELD // width) // max(1, x_BL.shape[1]))
    if torch.is_grad_enabled() or len(x_BL) <= rows:
        return run(x_BL, *others)
    count = -(-len(x_BL) // rows)
    split = [(None,) * count if other is None else other.split(rows) for other in (x_BL, *others)]
    made = [run(*each) for each in zip(*split, strict=True)]
    return torch.cat(made) if isinstance(made[0], Tensor) else tuple(map(torch.cat, zip(*made, strict=True)))


def rows_at(h_BLE: Tensor, select_BL: Tensor | None) -> Tensor:
    """Rows (M, E) at the selected positions, row-major; all of them where None.

    The device is waited for once, and by an index not again in the backward pass, as it would be by a mask.
    """
    h_NE = h_BLE.flatten(0, 1)
    return h_NE if select_BL is None else h_NE.index_select(0, select_BL.flatten().nonzero()[:, 0])


def head(linear: nn.Linear, h_RE: Tensor) -> Tensor:
    """Logits (R, V) float32 of hidden states, computed on up to a sixteenth more rows: of R to 2 R rows on 16 numbers alone.

    Where the number of rows is drawn, it differs in each step, and a CPU's library makes a kernel for each it has not seen.
    """
    R = len(h_RE)
    more = -R % (1 << max(0, R.bit_length() - 5))
    # Where nothing is added, a slice would cost its backward pass a copy of all logits.
    return (linear(F.pad(h_RE, (0, 0, 0, more)))[:R] if more else linear(h_RE)).float()


class Logits:
    """Logits (M, V) of selected positions that are made when they are asked for: `split(rows)` in slices, or `whole()`.

    `make` turns rows of the tensors `of_M` (hidden states, and what else belongs to a position) into logits (R, V) float32.
    `harness.diffusion.masked` reads them in slices; what has no slices to read takes `whole()`, an ordinary tensor.
    """

    def __init__(self, make: Callable[..., Tensor], vocab_size: int, *of_M: Tensor) -> None:
        self._make, self._of_M = make, of_M
        self.shape, self.device = torch.Size((len(of_M[0]), vocab_size)), of_M[0].device

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, rows: int) -> Iterator[Tensor]:
        """Slices of at most so many rows, one after the other; at least one, which may be empty."""
        yield from (self._make(*each) for each in zip(*(of_M.split(rows) for of_M in self._of_M), strict=True))

    @classmethod
    def of(cls, logits_MV: Tensor | Logits) -> Logits:
        """The same, where they are a tensor already."""
        return logits_MV if isinstance(logits_MV, Logits) else cls(lambda l_RV: l_RV, logits_MV.shape[1], logits_MV)

    def then(self, change: Callable[..., Tensor], *of_M: Tensor) -> Logits:
        """Those that `change` makes of each slice, and of the rows of `of_M` that belong to it."""
        own = len(self._of_M)

        def make(*of_R: Tensor) -> Tensor:
            return change(self._make(*of_R[:own]), *of_R[own:])

        return Logits(make, self.shape[1], *self._of_M, *of_M)

    def whole(self) -> Tensor:
        """All of them, with their gradient."""
        return self._make(*self._of_M)
