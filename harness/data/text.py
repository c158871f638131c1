"""Text in local files: plain or JSON lines, gzipped or not; a folder with a file for each split, or one file to cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from harness.config.fields import chosen, ranged
from harness.data.base import SPLITS, Corpus, DataSource, TokenData
from harness.data.files import check_fractions, documents_digest
from harness.data.pack import pack
from harness.data.stream import blocks_of, lines_of, runs_of, with_newlines
from harness.data.tokenizers import TokenizerSpec
from harness.errors import UserError, nearest

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
DOCUMENTS = ("lines", "paragraphs", "whole")
_SURROGATE = re.compile("[\ud800-\udfff]")
_STEMS = {"train": ("train",), "valid": ("valid", "val", "validation", "dev"), "test": ("test",)}


@dataclass
class TextOptions:
    """Where the text is, and what a document is.

    The fractions are cut from the end of a single file (in documents; in characters where there is one document) and,
    for a split without a file, from the end of the training file.
    """

    path: str = MISSING  # a folder with train, valid and test files, or one file
    documents: str = chosen("lines", DOCUMENTS)  # of a .txt file; paragraphs: between blank lines; whole: all of it
    field: str = "text"  # key of the text in JSON lines
    valid_fraction: float = ranged(0.05, 0, 1, above=True, below=True)  # of the text
    test_fraction: float = ranged(0.05, 0, 1, above=True, below=True)  # of the text


class Text(DataSource):
    """Reads local text."""

    Options = TextOptions

    def load(self, length: int, cache: Path, tokenizer: TokenizerSpec) -> TokenData:
        return pack(self.corpus(), tokenizer, length, cache)

    def corpus(self) -> Corpus:
        """The documents by split. Raises `UserError` for a path or a file that cannot be used."""
        options = self.options
        check_fractions(options.valid_fraction, options.test_fraction, usual=0.05)
        path = _existing(options.path)
        files = _files_of(path) if path.is_dir() else {"train": path}
        documents, notes = dict[str, list[str]](), list[str]()
        for split, file in files.items():
            documents[split], replaced = read_documents(file, options)
            if replaced:
                notes.append(f"{file} has {replaced} lone surrogate(s), read as U+FFFD")
        cut = tuple(split for split in SPLITS if split not in files)
        if cut:
            documents = _hold_out(documents, cut, options, path)
        facts = {"path": str(path), "held_out_of_train": ", ".join(cut) or "nothing"}
        name = path.name.removesuffix(_suffix(path)) if path.is_file() else path.resolve().name
        documents = {split: documents[split] for split in SPLITS}
        return Corpus(name, documents, documents_digest(documents), facts, tuple(notes))


def _suffix(path: Path) -> str:
    """The longest of `SUFFIXES` at the end of the name, or ''."""
    return max((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), key=len, default="")


def _existing(given: str) -> Path:
    if not given or given == MISSING:
        raise UserError("data.path is empty; give a text file, or a folder with train, valid and test files")
    if "://" in given:
        raise UserError(f"data.path={given} is an address; download it and give the file")
    path = Path(given)
    try:
        if path.exists():
            return path
        if path.is_symlink():
            raise UserError(f"data.path={given} is a link that leads nowhere; give a file or folder")
        parent = path.parent
        while not parent.is_dir() and parent != parent.parent:
            path, parent = parent, parent.parent
        hint = nearest(path.name, [entry.name for entry in parent.iterdir()])
    except OSError as error:
        raise UserError(
            f"data.path={given} cannot be read ({error.strerror}); give a readable file or folder"
        ) from error
    raise UserError(f"data.path={given} does not exist: '{path.name}' is not in {parent}{hint}")


def _files_of(folder: Path) -> dict[str, Path]:
    """The file of each split in `folder`; valid and test may be absent."""
    found: dict[str, Path] = {}
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise UserError(f"data.path={folder} cannot be read ({error.strerror}); give a readable folder") from error
    for split, stems in _STEMS.items():
        matching = [name for name in names if name in {stem + suffix for stem in stems for suffix in SUFFIXES}]
        if len(matching) > 1:
            raise UserError(f"data.path={folder} has more than one {split} file ({', '.join(matching)}); keep one")
        if matching:
            found[split] = folder / matching[0]
    if "train" not in found:
        shown = ", ".join(names[:8]) or "no files"
        raise UserError(
            f"data.path={folder} has no training file ({shown}); name one train.txt, train.txt.gz or train.jsonl"
        )
    return found


def read_documents(path: Path, options: TextOptions) -> tuple[list[str], int]:
    """The documents of one file, without empty ones, and how many lone surrogates in them became U+FFFD.

    Raises `UserError` in one line for a file that is not text or has none.
    """
    suffix = _suffix(path)
    if not suffix:
        raise UserError(f"{path} has an unknown ending{nearest(''.join(path.suffixes[-2:]), SUFFIXES)}")
    blocks, under = blocks_of(path), ""
    if suffix.startswith(".jsonl"):
        found, under = _json_lines(lines_of(blocks, path), path, options.field), f" under data.field={options.field}"
    else:
        found = lines_of(map(with_newlines, blocks), path)
        if options.documents != "lines":
            found = runs_of(found, path, whole=options.documents == "whole")
    is_whole = options.documents == "whole" and not under
    documents = [text if is_whole else text.strip() for text in found if text.strip()]
    if not documents:
        raise UserError(f"{path} is empty{under}; give a file with text")
    return _without_surrogates(documents)


def _json_lines(lines: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON ({error}); each line must be one object") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            keys = [key for key, value in record.items() if isinstance(value, str)] if isinstance(record, dict) else []
            hint = nearest(field, keys) or "; each line must be an object with a text"
            raise UserError(f"{path} line {number} has no text under data.field={field}{hint}")
        yield with_newlines(record[field])


def _without_surrogates(documents: list[str]) -> tuple[list[str], int]:
    """JSON may name half of a character, which no encoding of text can hold."""
    replaced = 0
    for number, document in enumerate(documents):
        if not document.isascii():
            documents[number], count = _SURROGATE.subn("\ufffd", document)
            replaced += count
    return documents, replaced


def _hold_out(
    documents: dict[str, list[str]], cut: tuple[str, ...], options: TextOptions, path: Path
) -> dict[str, list[str]]:
    """Cut the missing splits from the end of the training text, as contiguous blocks: train, valid, test."""
    remaining, found = documents["train"], dict(documents)
    whole = len(remaining) == 1
    units: Any = remaining[0] if whole else remaining  # characters or documents, which are cut alike
    total = len(units)
    for split in reversed(cut):
        count = max(1, round(total * getattr(options, f"{split}_fraction")))
        units, part = units[:-count], units[-count:]
        found[split] = [part] if whole else part
    if not units:
        raise UserError(
            f"data.path={path} has {total} documents, too few to hold out {' and '.join(cut)}; give more text"
        )
    return found | {"train": [units] if whole else units}
