"""A judge reads text and says how likely it is, and gives the features on which MAUVE compares two sets of texts.

Shapes: N texts, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from harness.data.base import TokenData


@dataclass(frozen=True)
class TextScores:
    """Per text: summed negative log-likelihood in nats (float64), and the number of tokens that were scored.

    `chars_N` are the characters of the text that those tokens spell; None: all of each text.
    """

    nll_N: np.ndarray
    tokens_N: np.ndarray
    chars_N: np.ndarray | None = None


class Judge(ABC):
    """Built as `cls(options)`; `prepare` loads or trains it, after which the rest may be called."""

    Options: type
    #: Whether `prepare` is done.
    ready = False
    #: Whether it says how likely a text is, and whether it names classes.
    has_likelihood, classifies = True, False
    #: Whether a token of it may spell several characters: text that falls apart has more and cheaper tokens, so that
    #: perplexity per token orders texts wrongly, and nats per character are what counts.
    merges = False
    #: The texts of a set that it reads, the first so many; 0: all. What a large judge has time for, and part of its identity.
    texts = 0

    def __init__(self, options) -> None:
        self.options = options

    @property
    def _prepared(self) -> Self:
        if not self.ready:
            raise RuntimeError("call prepare() before the judge is asked anything")
        return self

    def check(self, data: TokenData) -> None:  # noqa: B027 - most judges can be had for any data
        """Raise `UserError` for what `prepare` would refuse, as far as that is known without its work."""

    def files_key(self) -> str:
        """Hash of the user's files that decide what it says, as they are now; empty where it has none."""
        return ""

    @abstractmethod
    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        """Load the weights (or train them once and cache them by fingerprint); loaded once, in a named dtype."""

    def left_to_train(self, data: TokenData, cache: Path) -> int:
        """Tokens that `prepare` would train on; 0 where the judge is there already."""
        return 0

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name, revision or hash (weights, configuration, tokenizer), dtype, context, definition: part of every number."""

    @property
    @abstractmethod
    def heldout_ppl(self) -> float | None:
        """Pooled perplexity on held-out sequences of the study's data, scored just as samples are; None without one."""

    @abstractmethod
    def score(self, texts: Sequence[str]) -> TextScores:
        """Decode was done by the caller: re-tokenise, score; position 0 only with a BOS; nothing after the first EOS."""

    @abstractmethod
    def features(self, texts: Sequence[str]) -> np.ndarray:
        """(N, F) float32 features, pooled from the last hidden state as the identity says."""

    def read_of(self, texts: Sequence[str]) -> Sequence[str]:
        """Those of a set of texts that it reads."""
        return texts[: self.texts or None]

    def class_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(N, C) probabilities of classes, of a judge that names them."""
        raise NotImplementedError(f"{type(self).__name__} names no classes")
