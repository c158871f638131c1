"""Token data as the rest of the harness sees it: three splits of equal-length sequences, and how to read them.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.tasks.base import ExactTask

SPLITS = ("train", "valid", "test")
_ROWS_SEED = 20_250_101


@dataclass(frozen=True)
class TokenData:
    """Sequences of token ids in [0, V), packed to length L; `fingerprint` changes whenever any of them does.

    `splits` maps each of `SPLITS` to an (N, L) integer array (memory-mapped where it is large). `decode` turns one row of
    ids into text, and `encode` texts into ids, where there is a tokenizer. `facts` are plain figures about the data for logs
    and reports (bytes per token, documents, ...).
    `task` is the distribution itself where it is known; `render` turns ids (N, L) into grey pictures (N, H, W) uint8
    where the data are pictures; `labels[split]` are classes (N,) int64 where rows have them, for judges alone. `notes` are
    lines for the user about what was lost on the way. `tokenizer_text` gives what the tokenizer is restored from.
    """

    name: str
    vocab_size: int
    length: int
    splits: dict[str, np.ndarray]
    fingerprint: str
    decode: Callable[[Sequence[int]], str]
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    task: ExactTask | None = None
    render: Callable[[np.ndarray], np.ndarray] | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    encode: Callable[[Sequence[str]], list[np.ndarray]] | None = None
    tokenizer_text: Callable[[], str] | None = None

    def some(self, split: str, count: int | None = None) -> np.ndarray:
        """`count` rows of a split (all, where it has no more), (n, L) int64: chosen at random, in random order.

        Files are in some order, so that their first rows are no sample of them. The choice depends on the number of rows
        alone: it is the same for every method, seed and machine, and a smaller one is the start of a larger one.
        """
        rows_NL = self.splits[split]
        order_N = np.random.default_rng(_ROWS_SEED).permutation(len(rows_NL))[:count]
        return np.asarray(rows_NL[order_N], dtype=np.int64)


class DataSource(ABC):
    """Something that yields `TokenData`: built as `cls(options)` with an instance of `cls.Options`."""

    Options: type

    def __init__(self, options) -> None:
        self.options = options

    @abstractmethod
    def load(self, length: int, cache: Path, tokenizer) -> TokenData:
        """The data packed to `length` tokens; `cache` is a folder for files that can be made again.

        `tokenizer` is a `harness.data.tokenizers.TokenizerSpec` (sources of text) or ignored (sources of token ids).
        Raises `UserError` for a missing, empty or unreadable source, or one with no sequence of that length.
        """


@dataclass(frozen=True)
class Corpus:
    """Documents of text by split, and a hash of their content; `notes` as in `TokenData`."""

    name: str
    documents: Mapping[str, Sequence[str]]
    fingerprint: str
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
