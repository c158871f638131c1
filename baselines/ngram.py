"""Counted models: unigram and n-gram with Witten-Bell back-off. Every table has them, since they game perplexity cheaply.

`p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))`, with c counts, T(h) the number of different words seen after h and
h' the history without its oldest word (Witten & Bell 1991, method C, interpolated); the last back-off is to the uniform law.

Shapes: N sequences, L tokens, V symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.errors import UserError
from harness.interface import Bound, Method, Problem, Stage


@dataclass
class NGramOptions:
    order: int = ranged(3, 1)


class Level:
    """Occurrences of all histories of one length: sorted history keys, the words after them, distinct followers."""

    def __init__(self, pair_M: np.ndarray, vocab_size: int) -> None:
        """From the keys of histories, each times V, plus the words after them; they are sorted in place."""
        pair_M.sort()
        self.pair, self.vocab_size = pair_M, vocab_size
        history_M = pair_M // vocab_size
        first = np.flatnonzero(_is_new(history_M))
        self.history, self.start = history_M[first], np.append(first, len(pair_M))
        self.distinct = np.add.reduceat(_is_new(pair_M), first, dtype=np.int64)

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
        self.title = {1: "Unigram", 2: "Bigram", 3: "Trigram"}.get(options.order, f"{options.order}-gram")
        self.levels: list[Level] = []  # by length of the history

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def fit(self, train_NL: np.ndarray) -> None:
        rows, width = train_NL.shape
        self.levels = []
        for length in range(min(self.options.order, width)):
            pair = np.zeros((rows, width - length), dtype=np.int64)
            for j in range(length + 1):
                pair *= self.problem.vocab_size
                pair += train_NL[:, j : j + width - length]
            self.levels.append(Level(pair.ravel(), self.problem.vocab_size))

    def history(self, x_NL: np.ndarray, position: int, length: int) -> np.ndarray:
        """Keys (N,) of the `length` words before `position`, as the level of that length has them."""
        key = np.zeros(x_NL.shape[0], dtype=np.int64)
        for j in range(position - length, position):
            key = key * self.problem.vocab_size + x_NL[:, j]
        return key

    def _next_probability(self, x_NL: np.ndarray, position: int) -> np.ndarray:
        """p of the word at `position` given those before it, (N,)."""
        p = np.full(x_NL.shape[0], 1.0 / self.problem.vocab_size)
        for length in range(min(position, self.options.order - 1) + 1):
            level, key = self.levels[length], self.history(x_NL, position, length)
            _, count, distinct = level.look_up(key)
            total = np.maximum(count + distinct, 1)
            p = np.where(count > 0, (level.pair_count(key, x_NL[:, position]) + distinct * p) / total, p)
        return p

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        x = x_BL.cpu().numpy().astype(np.int64)
        nll = -sum(np.log(self._next_probability(x, i)) for i in range(x.shape[1]))
        return Bound(torch.from_numpy(nll), "exact log-likelihood by the chain rule", exact=True)
