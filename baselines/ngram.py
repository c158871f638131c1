"""Counted models: unigram and n-gram with Witten-Bell back-off. Every table has them, since they game perplexity cheaply.

`p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))`, with c counts, T(h) the number of different words seen after h and
h' the history without its oldest word (Witten & Bell 1991, method C, interpolated); the last back-off is to the uniform law.

Shapes: N sequences, L tokens, V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.errors import UserError
from harness.interface import Bound, Method, Problem, Stage

_ORDERS = (2, 6)  # among which validation text chooses


@dataclass
class NGramOptions:
    order: int = ranged(3, 1, also=(0,))  # tokens of a window; 0: of 2 to 6 what validation text is likeliest under


class Level:
    """Occurrences of all histories of one length: sorted history keys, the words after them, distinct followers.

    `pair_M` are the keys `history * vocab_size + word` of all occurrences; they are sorted in place.
    """

    def __init__(self, pair_M: np.ndarray, vocab_size: int) -> None:
        pair_M.sort()
        self.pair, self.vocab_size = pair_M, vocab_size
        of_pair = np.flatnonzero(_is_new(pair_M))
        kind = pair_M[of_pair] // vocab_size  # of different pairs, in order: few where the text is long
        first = np.flatnonzero(_is_new(kind))
        self.history = kind[first]
        self.distinct = np.diff(first, append=len(kind))
        self.start = np.append(of_pair[first], len(pair_M))

    def look_up(self, history_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start of the occurrences, their count c(h), and T(h); zeros where the history was never seen."""
        at = np.minimum(np.searchsorted(self.history, history_N), len(self.history) - 1)
        seen = self.history[at] == history_N
        start = self.start[at]
        return start, np.where(seen, self.start[at + 1] - start, 0), np.where(seen, self.distinct[at], 0)

    def pair_count(self, history_N: np.ndarray, word_N: np.ndarray) -> np.ndarray:
        key = history_N * self.vocab_size + word_N
        return np.searchsorted(self.pair, key, side="right") - np.searchsorted(self.pair, key, side="left")


def _is_new(sorted_M: np.ndarray) -> np.ndarray:
    """Where a value is the first of its kind, (M,) bool."""
    new_M = np.ones(len(sorted_M), dtype=bool)
    np.not_equal(sorted_M[1:], sorted_M[:-1], out=new_M[1:])
    return new_M


class NGram(Method):
    """Unigram (`order=1`) or n-gram model of packed text; windows start anywhere, so short histories start a sequence."""

    Options = NGramOptions
    role = "reference"

    def __init__(self, problem: Problem, options: NGramOptions) -> None:
        super().__init__(problem, options)
        limit = int(62 // np.log2(max(problem.vocab_size, 2)))
        if options.order > limit:
            raise UserError(
                f"n-gram order={options.order} does not fit a vocabulary of {problem.vocab_size}; choose 1 to {limit}"
            )
        self.order = options.order or min(_ORDERS[1], limit)
        names = {0: "Best n-gram", 1: "Unigram", 2: "Bigram", 3: "Trigram"}
        self.title = names.get(options.order, f"{options.order}-gram")
        self.levels: list[Level] = []  # by length of the history

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def fit(self, train_NL: np.ndarray) -> None:
        self.levels = []
        pair = train_NL.astype(np.int64)
        for length in range(1, min(self.order, train_NL.shape[1]) + 1):
            self.levels.append(Level(pair.flatten(), self.problem.vocab_size))
            pair = pair[:, :-1] * self.problem.vocab_size
            pair += train_NL[:, length:]

    def settle(self, valid_NL: np.ndarray) -> None:
        if self.options.order == 0:
            nll_O = sum(-np.log(p_ON).sum(1) for p_ON in self._probabilities(valid_NL))
            self.order = _ORDERS[0] + int(np.argmin(nll_O[_ORDERS[0] - 1 :]))

    def history(self, x_NL: np.ndarray, position: int, length: int) -> np.ndarray:
        """Keys (N,) of the `length` words before `position`, as the level of that length has them."""
        key = np.zeros(x_NL.shape[0], dtype=np.int64)
        for j in range(position - length, position):
            key = key * self.problem.vocab_size + x_NL[:, j]
        return key

    def _probabilities(self, x_NL: np.ndarray) -> Iterator[np.ndarray]:
        """p of the word at each position given those before it, under each order up to that of this model: (O, N)."""
        for position in range(x_NL.shape[1]):
            p = np.full(x_NL.shape[0], 1.0 / self.problem.vocab_size)
            p_ON = np.empty((self.order, x_NL.shape[0]))
            for length in range(self.order):
                if length <= position:
                    level, key = self.levels[length], self.history(x_NL, position, length)
                    _, count, distinct = level.look_up(key)
                    total = np.maximum(count + distinct, 1)
                    p = np.where(count > 0, (level.pair_count(key, x_NL[:, position]) + distinct * p) / total, p)
                p_ON[length] = p
            yield p_ON

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        x = x_BL.cpu().numpy().astype(np.int64)
        nll = -sum(np.log(p_ON[-1]) for p_ON in self._probabilities(x))
        return Bound(torch.from_numpy(nll), f"exact log-likelihood by the chain rule, order {self.order}", exact=True)
