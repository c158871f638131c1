"""From documents to sequences: documents and separators in one stream of ids, cut to equal lengths, kept on disk.

Shapes: T tokens of a split, N sequences, L tokens of a sequence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.data.base import SPLITS, Corpus, TokenData
from harness.data.encode import Encoder
from harness.data.files import digest, write_atomically
from harness.data.tokenizers import Tokenizer, TokenizerSpec
from harness.errors import UserError

log = logging.getLogger(__name__)

PACK_VERSION = 1
_BLOCK = 1 << 20
_BLOCKS_HASHED = 512
_LOST_NOTED = 0.02


class _NotRead(Exception):
    """Documents are asked for that were not read."""


class _Unread(Sequence[str]):
    """Documents of which the number is known and nothing else."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        raise _NotRead


def pack_once(source: Any, read: Callable[[], Corpus], tokenizer: TokenizerSpec, length: int, cache: Path) -> TokenData:
    """`pack` of what `read` returns; nothing is read where the cache has the ids of the text that `source` names.

    `source` is JSON-able and changes with the text: a repository, its revision and the options that choose from it. What is
    kept under it is what a corpus says besides its documents, and their number.
    """
    spec = type(tokenizer)
    key = digest(
        [PACK_VERSION, source, f"{spec.__module__}.{spec.__qualname__}", dataclasses.asdict(tokenizer.options)]
    )
    path = cache / f"source-{key[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, _NotRead):
        known = json.loads(path.read_text(encoding="utf-8"))
        documents = {split: _Unread(known["counts"][split]) for split in SPLITS}
        notes = tuple(known["notes"])
        return pack(
            Corpus(known["name"], documents, known["fingerprint"], known["facts"], notes), tokenizer, length, cache
        )
    corpus = read()
    data = pack(corpus, tokenizer, length, cache)
    kept = {"name": corpus.name, "fingerprint": corpus.fingerprint, "facts": dict(corpus.facts), "notes": corpus.notes}
    kept["counts"] = {split: len(corpus.documents[split]) for split in SPLITS}
    write_atomically(path, lambda file: file.write(json.dumps(kept, indent=1).encode()))
    return data


def pack(corpus: Corpus, tokenizer: TokenizerSpec, length: int, cache: Path) -> TokenData:
    """`corpus` as (N, L) ids by split; the remainder of a split that fills no sequence is dropped.

    The stream of ids is cached by content and tokenizer, whatever the length. Raises `UserError` for a split shorter
    than one sequence.
    """
    if length < 1:
        raise UserError(f"length={length} is not a sequence length; use 1 or more")
    for split in SPLITS:
        if not corpus.documents.get(split):
            raise UserError(f"data {corpus.name}: the {split} split has no documents; hold out more text")
    built = tokenizer.build(corpus.documents["train"], cache, corpus.fingerprint)
    key = digest([PACK_VERSION, corpus.fingerprint, built.identity])[:16]
    record = _stored(cache, key)
    if record is None:
        record = _encode(corpus, built, cache, key)
    splits = {split: _sequences(cache, key, split, length, corpus.name) for split in SPLITS}
    facts = dict(corpus.facts) | {"tokenizer": built.identity, "vocab_size": built.vocab_size}
    for split in SPLITS:
        part = record[split]
        facts[f"documents_{split}"] = len(corpus.documents[split])
        facts[f"tokens_{split}"] = part["tokens"]
        facts[f"bytes_{split}"] = part["bytes"]
        facts[f"bytes_per_token_{split}"] = part["bytes"] / part["tokens"]
        if built.loses:
            facts[f"{built.loses}_{split}"] = part["lost"]
    return TokenData(
        name=corpus.name,
        vocab_size=built.vocab_size,
        length=length,
        splits=splits,
        fingerprint=digest([PACK_VERSION, corpus.fingerprint, built.identity, length]),
        decode=built.decode,
        encode=built.encode_batch,
        tokenizer_text=built.to_text,
        facts=facts,
        notes=(*corpus.notes, *_lost(corpus.name, built, record)),
    )


def _lost(name: str, tokenizer: Tokenizer, record: dict[str, Any]) -> list[str]:
    """A line where a few percent of the text are not in its ids; raises `UserError` where most of a split is not."""
    what, shares = tokenizer.loses.replace("_", " "), {split: record[split]["lost"] for split in SPLITS}
    for split, share in shares.items():
        if share > tokenizer.most_lost:
            raise UserError(
                f"data {name}: {what} of the {split} split are {share:.0%} of it, under {tokenizer.identity}; "
                "use tokenizer=bpe, which has a token for everything"
            )
    if max(shares.values()) <= _LOST_NOTED:
        return []
    each = ", ".join(f"{share:.1%} of {split}" for split, share in shares.items())
    return [f"data {name}: {what} under {tokenizer.identity}: {each}; no number says anything of them"]


def _path(cache: Path, key: str, split: str) -> Path:
    return cache / f"tokens-{key}-{split}.npy"


def _stored(cache: Path, key: str) -> dict[str, Any] | None:
    """The record beside the cached streams, or None where a stream is absent, cut short or altered."""
    try:
        record = json.loads((cache / f"tokens-{key}.json").read_text(encoding="utf-8"))
        for split in SPLITS:
            path, _ = _path(cache, key, split), record[split]["lost"]
            if path.stat().st_size != record[split]["size"] or file_digest(path) != record[split]["sha256"]:
                log.warning("pack: %s is damaged and is made again", path.name)
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _encode(corpus: Corpus, tokenizer: Tokenizer, cache: Path, key: str) -> dict[str, Any]:
    """Encode every split, write the streams, and last of all the record that vouches for them."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    record: dict[str, Any] = {}
    for split in SPLITS:
        facts, path = dict[str, Any](), _path(cache, key, split)
        write_atomically(path, partial(_write_ids, corpus.documents[split], tokenizer, dtype, facts))
        if not facts["tokens"]:
            path.unlink()
            raise UserError(f"data {corpus.name}: no character of the {split} split is in the tokenizer's alphabet")
        record[split] = facts | {"size": path.stat().st_size, "sha256": file_digest(path)}
    write_atomically(cache / f"tokens-{key}.json", lambda file: file.write(json.dumps(record, indent=1).encode()))
    return record


def _write_ids(
    documents: Sequence[str], tokenizer: Tokenizer, dtype: np.dtype, facts: dict[str, Any], file: IO[bytes]
) -> None:
    """The stream of ids as `numpy.save` would write it, batch by batch; how many there are, and of what, into `facts`."""
    encoder = Encoder(tokenizer, dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    written, tokens, text_bytes, lost = 0, 0, 0, np.zeros(2)
    np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})  # with room for any number in its place
    for stretch in encoder.stretches(documents):
        ids_T = stretch.ids_T if written else stretch.ids_T[len(encoder.separator) :]  # none in front of the first
        file.write(ids_T.tobytes())
        tokens, written = tokens + len(ids_T), written + stretch.documents
        text_bytes, lost = text_bytes + stretch.text_bytes, lost + stretch.lost
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header | {"shape": (tokens,)})
    text_bytes += (written - 1) * tokenizer.separator_bytes
    facts |= {"tokens": tokens, "bytes": text_bytes, "lost": round(float(lost[0] / max(lost[1], 1)), 4)}


def _sequences(cache: Path, key: str, split: str, length: int, name: str) -> np.ndarray:
    stream_T = np.load(_path(cache, key, split), mmap_mode="r", allow_pickle=False)
    count = len(stream_T) // length
    if not count:
        raise UserError(
            f"length={length} is longer than the {split} split of data {name} ({len(stream_T)} tokens); "
            f"use length <= {len(stream_T)} or more text"
        )
    return stream_T[: count * length].reshape(count, length)


def file_digest(path: Path) -> str:
    """SHA-256 of a file; of a file above 512 MiB only of 512 blocks of 1 MiB spread over it, the ends among them."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _BLOCK * _BLOCKS_HASHED:
            while block := file.read(_BLOCK):
                total.update(block)
        else:
            for number in range(_BLOCKS_HASHED):
                file.seek((size - _BLOCK) * number // (_BLOCKS_HASHED - 1))
                total.update(file.read(_BLOCK))
    return total.hexdigest()
