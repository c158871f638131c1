"""Files in the cache: written whole or not at all, and hashes of what they hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import harness.store as store
from harness.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`harness.store.write_atomically` for the cache; raises `UserError` where its folder cannot be written."""
    store.write_atomically(path, write, "cache folder")


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def documents_digest(documents: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 (hex) over all documents, by split, with their lengths, so that a moved boundary changes it."""
    total = hashlib.sha256()
    for split in sorted(documents):
        total.update(f"{split} {len(documents[split])}\n".encode())
        for document in documents[split]:
            data = document.encode("utf-8", "surrogatepass")
            total.update(f"{len(data)}\n".encode())
            total.update(data)
    return total.hexdigest()


def texts_digest(texts: Iterable[str], start: str = "") -> str:
    """SHA-256 (hex) of `start` and of the texts in their order; lengths keep ["ab", "c"] apart from ["a", "bc"]."""
    total = hashlib.sha256(start.encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def save_documents(path: Path, documents: dict[str, list[str]], facts: dict[str, Any]) -> str:
    """Write documents by split as gzipped JSON lines (the last line carries facts and hash); returns their hash."""
    fingerprint = documents_digest(documents)

    def write(file: BinaryIO) -> None:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=3, mtime=0) as packed:
            for split, texts in documents.items():
                packed.write((json.dumps({"split": split, "texts": texts}) + "\n").encode())
            packed.write((json.dumps({"facts": facts, "sha256": fingerprint}) + "\n").encode())

    write_atomically(path, write)
    return fingerprint


def load_documents(path: Path) -> tuple[dict[str, list[str]], dict[str, Any], str] | None:
    """What `save_documents` wrote, as (documents, facts, hash), or None where it is absent, cut short or altered."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        *parts, last = records
        documents = {part["split"]: part["texts"] for part in parts}
        facts, expected = last["facts"], last["sha256"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return None
    return (documents, facts, expected) if documents_digest(documents) == expected else None


def held_out(name: str, valid_fraction: float, test_fraction: float) -> str:
    """The split of something called `name`: a stable hash decides, so that additions move nothing else."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if place < valid_fraction:
        return "valid"
    return "test" if place < valid_fraction + test_fraction else "train"


def check_fractions(valid: float, test: float, usual: float) -> None:
    """Raise `UserError` where holding out these shares of the text leaves none to train on."""
    if valid + test >= 1:
        raise UserError(
            f"data.valid_fraction={valid} and data.test_fraction={test} leave nothing to train on; use {usual} and {usual}"
        )


def total_bytes(documents: Iterable[str]) -> int:
    """Length in bytes of UTF-8."""
    return sum(len(document) if document.isascii() else len(document.encode()) for document in documents)
