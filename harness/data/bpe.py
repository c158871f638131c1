"""Byte-level byte-pair encoding, learnt on the training split: any text can be encoded, and nothing is unknown."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from harness.config.fields import ranged
from harness.data.files import digest, total_bytes, write_atomically
from harness.data.tokenizers import Tokenizer, TokenizerSpec

log = logging.getLogger(__name__)

BYTES = 256
#: Places where the pre-tokeniser of GPT-2 always cuts, so that no token crosses them: before a single space with a
#: letter after it, and between a letter and a stop.
_BOUNDARY = re.compile(r"(?<=[!-~])(?= [A-Za-z])|(?<=[A-Za-z])(?=[,.;:!?])")
_LONGEST_PART = 1_000_000  # characters
_BATCH_CHARACTERS = 4_000_000
_KNOWN_CHARACTERS = 50_000_000


@dataclass
class ByteBPEOptions:
    """How many tokens are learnt, and from how much."""

    vocab_size: int = ranged(1024, BYTES)  # the 256 bytes included
    train_megabytes: float = ranged(10.0, 0, above=True)  # of the training split, at most


class ByteBPE(TokenizerSpec):
    """BPE over bytes with the pre-tokenisation of GPT-2; documents are separated by a newline."""

    Options = ByteBPEOptions

    def build(self, documents: Sequence[str], cache: Path, key: str) -> Tokenizer:
        options = self.options
        path = cache / f"bpe-{digest(['bpe-1', key, options.vocab_size, options.train_megabytes])[:16]}.json"
        learnt = _read(path, options.vocab_size)
        if learnt is None:
            learnt = learn_bpe(_sample(documents, int(options.train_megabytes * 1e6)), options.vocab_size, [])
            write_atomically(path, lambda file: file.write(learnt.to_str().encode()))
        if learnt.get_vocab_size() < options.vocab_size:
            log.warning("bpe: the text yields %d tokens, not %d", learnt.get_vocab_size(), options.vocab_size)
        return _ByteBPETokenizer(learnt)

    def restore(self, text: str) -> Tokenizer:
        return _ByteBPETokenizer(tokenizers.Tokenizer.from_str(text))


class _ByteBPETokenizer(Tokenizer):
    def __init__(self, learnt: tokenizers.Tokenizer) -> None:
        self._learnt = learnt
        self._known: dict[str, list[int]] = {}
        self._known_characters = 0
        self.vocab_size = learnt.get_vocab_size()
        content = hashlib.sha256(learnt.to_str().encode()).hexdigest()
        self.identity = f"byte-bpe-{self.vocab_size}-{content[:16]}"
        self.separator = tuple(learnt.encode("\n").ids)
        self.separator_bytes = 1

    def encode_batch(self, documents: Sequence[str]) -> list[np.ndarray]:
        encoded: list[list[np.ndarray]] = [[] for _ in documents]
        batch: list[tuple[int, list[str]]] = []
        waiting = 0
        for number, document in enumerate(documents):
            for part in _parts(document):
                batch.append((number, _BOUNDARY.split(part)))
                waiting += len(part)
                if waiting >= _BATCH_CHARACTERS:
                    self._encode(batch, encoded)
                    batch, waiting = [], 0
        self._encode(batch, encoded)
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in encoded]

    def _encode(self, batch: list[tuple[int, list[str]]], encoded: list[list[np.ndarray]]) -> None:
        """Text repeats its words: only pieces that are new go through the library, which is three times as slow."""
        new = list(set().union(*(pieces for _, pieces in batch)) - self._known.keys())
        self._known.update(
            (piece, found.ids) for piece, found in zip(new, self._learnt.encode_batch_fast(new), strict=True)
        )
        for number, pieces in batch:
            ids = chain.from_iterable(map(self._known.__getitem__, pieces))
            encoded[number].append(np.fromiter(ids, dtype=np.int32))
        self._known_characters += sum(map(len, new))
        if self._known_characters > _KNOWN_CHARACTERS:
            self._known.clear()
            self._known_characters = 0

    def decode(self, ids: Sequence[int]) -> str:
        return self._learnt.decode([int(i) for i in ids], skip_special_tokens=False)

    def to_text(self) -> str:
        return self._learnt.to_str()


def _parts(document: str) -> Iterator[str]:
    """`document` in parts of about `_LONGEST_PART`, cut at a boundary (or not at all, where there is none)."""
    start = 0
    while len(document) - start > _LONGEST_PART:
        boundary = _BOUNDARY.search(document, start + _LONGEST_PART)
        if boundary is None:
            break
        yield document[start : boundary.start()]
        start = boundary.start()
    yield document[start:]


def learn_bpe(texts: Iterator[str], vocab_size: int, special_tokens: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE of at most `vocab_size` ids: the special tokens, the 256 bytes, and what is learnt from `texts`."""
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special_tokens,
        show_progress=False,
    )
    learnt.train_from_iterator(texts, trainer)
    return learnt


def _sample(documents: Sequence[str], limit: int) -> Iterator[str]:
    """Pieces of the documents, evenly spread over them, of about `limit` bytes in all."""
    every = max(1, -(-total_bytes(documents) // limit))
    pieces = (document[at : at + 10_000] for document in documents for at in range(0, len(document), 10_000))
    return (piece for number, piece in enumerate(pieces) if number % every == 0)


def _read(path: Path, vocab_size: int) -> tokenizers.Tokenizer | None:
    """What was learnt before, or None where there is nothing, or nothing readable."""
    if not path.is_file():
        return None
    try:
        learnt = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for a damaged file
        log.warning("bpe: %s cannot be read and is learnt again (%s)", path.name, error)
        return None
    return learnt if learnt.get_vocab_size() <= vocab_size else None
