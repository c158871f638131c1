"""What a tokenizer must offer: `TokenizerSpec` is the configured recipe, `Tokenizer` what comes of it and of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.data.files import total_bytes


class Tokenizer(ABC):
    """Text to token ids in [0, vocab_size) and back.

    `identity` names the kind and carries a hash of the content: tokenizers with the same identity give the same ids.
    `separator` holds the ids that are put between packed documents, `separator_bytes` their length as text. `loses` is what
    ids may fail to say, as facts call it (empty: nothing), and `most_lost` the share of it above which text is refused.
    """

    vocab_size: int
    identity: str
    separator: tuple[int, ...]
    separator_bytes: int
    loses: str = ""
    most_lost: float = 1.0

    @abstractmethod
    def encode_batch(self, documents: Sequence[str]) -> list[np.ndarray]:
        """One 1-d integer array of ids for each document."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""

    def text_bytes(self, documents: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
        """Bytes of UTF-8 that the ids of `documents` stand for."""
        return total_bytes(documents)

    def to_text(self) -> str:
        """All that `TokenizerSpec.restore` needs beside the options, such as what was learnt."""
        return ""

    def lost(self, documents: Sequence[str], encoded: Sequence[np.ndarray]) -> tuple[int, int]:
        """How much of `documents` their ids do not say, and of how much."""
        return 0, 0


class TokenizerSpec(ABC):
    """Built as `cls(options)` with an instance of the dataclass `cls.Options`."""

    Options: type

    def __init__(self, options) -> None:
        self.options = options

    @abstractmethod
    def build(self, documents: Sequence[str], cache: Path, key: str) -> Tokenizer:
        """The tokenizer, learnt from `documents` (the training split only) where there is something to learn.

        `key` is the hash of the corpus: what is learnt is kept in `cache` under it. Raises `UserError` for bad options.
        """

    def restore(self, text: str) -> Tokenizer:
        """The tokenizer whose `to_text` this is, for models that are exported."""
        raise NotImplementedError(f"{type(self).__name__} is not restored from text")
