"""Counted n-grams with Witten-Bell back-off, over tokens of any vocabulary: what is not there takes no memory.

`p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))`, with c counts, T(h) the number of different words seen after h and
h' the history without its oldest word (Witten & Bell 1991, method C, interpolated); the last back-off is to the uniform law.

Shapes: N sequences, L tokens, O orders, M occurrences.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Orders among which text chooses.
ORDERS = (2, 6)


def longest(vocab_size: int) -> int:
    """The largest order whose histories are numbers of 62 bits."""
    return int(62 // np.log2(max(vocab_size, 2)))


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


class NGramCounts:
    """Of `order` tokens at most, or, where that is 0, as many as `choose` finds best. Windows start anywhere in a sequence."""

    def __init__(self, vocab_size: int, order: int = 0) -> None:
        self.vocab_size, self.chosen = vocab_size, order == 0
        self.order = order or min(ORDERS[1], longest(vocab_size))
        self.levels: list[Level] = []  # by length of the history

    def count(self, x_NL: np.ndarray) -> None:
        """Count the sequences (N, L), in the place of what was counted before."""
        self.levels = []
        pair = x_NL.astype(np.int64)
        for length in range(1, min(self.order, x_NL.shape[1]) + 1):
            self.levels.append(Level(pair.flatten(), self.vocab_size))
            pair = pair[:, :-1] * self.vocab_size
            pair += x_NL[:, length:]

    def choose(self, x_NL: np.ndarray) -> None:
        """Settle on the order under which sequences are likeliest, where none was given."""
        if self.chosen:
            nll_O = sum(-np.log(p_ON).sum(1) for p_ON in self.probabilities(x_NL))
            self.order = ORDERS[0] + int(np.argmin(nll_O[ORDERS[0] - 1 :]))

    def nll(self, x_NL: np.ndarray) -> np.ndarray:
        """-log p(x), nats (N,)."""
        return -sum(np.log(p_ON[-1]) for p_ON in self.probabilities(x_NL))

    def history(self, x_NL: np.ndarray, position: int, length: int) -> np.ndarray:
        """Keys (N,) of the `length` words before `position`, as the level of that length has them."""
        key = np.zeros(x_NL.shape[0], dtype=np.int64)
        for j in range(position - length, position):
            key = key * self.vocab_size + x_NL[:, j]
        return key

    def probabilities(self, x_NL: np.ndarray) -> Iterator[np.ndarray]:
        """p of the word at each position given those before it, under each order up to that of this model: (O, N)."""
        for position in range(x_NL.shape[1]):
            p = np.full(x_NL.shape[0], 1.0 / self.vocab_size)
            p_ON = np.empty((self.order, x_NL.shape[0]))
            for length in range(self.order):
                if length <= position:
                    level, key = self.levels[length], self.history(x_NL, position, length)
                    _, count, distinct = level.look_up(key)
                    total = np.maximum(count + distinct, 1)
                    p = np.where(count > 0, (level.pair_count(key, x_NL[:, position]) + distinct * p) / total, p)
                p_ON[length] = p
            yield p_ON
