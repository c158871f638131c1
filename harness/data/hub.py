"""Text from a dataset repository on the Hugging Face hub, or from a local folder in the same layout.

Only data files are read (parquet, JSON, text); `datasets` itself refuses repositories that need a script of their own.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from harness.config.fields import ranged
from harness.data.base import SPLITS, Corpus, DataSource, TokenData
from harness.data.files import check_fractions, digest, documents_digest, held_out
from harness.data.pack import pack_once
from harness.data.spool import Spool
from harness.data.tokenizers import TokenizerSpec
from harness.errors import UserError, nearest

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_A_BATCH = 10_000
_TIMEOUT_SECONDS = 10.0


@dataclass
class HubOptions:
    """Which dataset, and how it is split: by its own splits, or by a hash of each document's text."""

    repo: str = MISSING  # dataset repository
    config: str | None = None  # of the dataset
    revision: str | None = None  # a commit; null: the newest, a warning says which it is
    local: str | None = None  # a folder in the hub's layout that is read in place of the repository
    field: str = "text"  # column of the text
    train: str = "train"  # name of the split there
    valid: str | None = "validation"  # name of the split there; null: held out of the training split
    test: str | None = "test"  # name of the split there; null: held out of the training split
    valid_fraction: float = ranged(0.01, 0, 1, above=True, below=True)  # where it is held out
    test_fraction: float = ranged(0.01, 0, 1, above=True, below=True)  # where it is held out
    join: str | None = None  # makes one document of all rows of a split; null: each row is one
    max_documents: int | None = ranged(None, 1)  # rows read from each split at most, streamed; null: all


class Hub(DataSource):
    """Reads a dataset repository through `datasets.load_dataset`."""

    Options = HubOptions

    def load(self, length: int, cache: Path, tokenizer: TokenizerSpec) -> TokenData:
        options = self.options
        _check(options)
        revision = "local" if options.local else _resolve(options)
        files = _files(Path(options.local)) if options.local else []
        return pack_once(
            [dataclasses.asdict(options), revision, files],
            lambda: self.corpus(revision, cache),
            tokenizer,
            length,
            cache,
        )

    def corpus(self, revision: str | None = None, folder: Path | None = None) -> Corpus:
        """The documents by split, of a revision that was looked up or is looked up here; kept on disk, in `folder`.

        Raises `UserError` where the dataset cannot be found, reached or read.
        """
        options = self.options
        _check(options)
        revision = revision or ("local" if options.local else _resolve(options))
        rows = {split: self._rows(name, revision) for split in SPLITS if (name := getattr(options, split)) is not None}
        documents = _joined(rows, options.join) if options.join is not None else _by_split(rows, options, folder)
        for split in SPLITS:
            if not documents[split]:
                raise UserError(
                    f"data.repo={options.repo}: the {split} split has no text under data.field={options.field}; "
                    f"read more (data.max_documents={options.max_documents}) or hold out more"
                )
        content = documents_digest(documents)
        facts: dict[str, str | int | float] = {"repository": options.repo, "revision": revision}
        facts["revision_pinned"] = "true" if revision == options.revision else "false"
        facts["held_out_of_train"] = ", ".join(s for s in SPLITS if getattr(options, s) is None) or "nothing"
        if options.max_documents is not None:
            facts["max_documents"] = options.max_documents
        if options.local:
            facts["local"] = options.local
        name = options.repo.rsplit("/", 1)[-1]
        return Corpus(name, documents, digest([content, options.repo, options.config, revision]), facts)

    def _rows(self, name: str, revision: str) -> Iterator[str]:
        """The texts of the split `name`, in the order of the repository."""
        options = self.options
        import datasets

        # A stream leaves no second copy on disk: local files are at hand, and a limit needs only the first rows.
        streaming = options.local is not None or options.max_documents is not None
        where: dict[str, Any] = {"path": options.repo, "name": options.config, "revision": revision}
        if options.local:
            where = _local(options)
        try:
            loaded = datasets.load_dataset(**where, split=name, streaming=streaming)
            columns = loaded.column_names
            if columns is not None:
                _check_field(options, columns)
            if options.max_documents is not None:
                loaded = loaded.take(options.max_documents)
            for batch in loaded.iter(batch_size=_ROWS_A_BATCH):
                _check_field(options, list(batch))
                for text in batch[options.field]:
                    if not isinstance(text, str):
                        raise UserError(
                            f"data.field={options.field} of {_named(options)} holds {type(text).__name__}, not text; "
                            "choose a column of strings"
                        )
                    yield text
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - hub, transport, Arrow and builders each raise their own
            raise UserError(_reason(options, name, error)) from error


def _check(options: HubOptions) -> None:
    if not options.repo or options.repo == MISSING:
        raise UserError("data.repo is empty; give a dataset repository such as roneneldan/TinyStories")
    if options.valid is None and options.test is None:
        check_fractions(options.valid_fraction, options.test_fraction, usual=0.01)
    if options.join is not None and None in (options.valid, options.test):
        raise UserError(
            "data.join makes one document of a split, of which none can be held out; name data.valid and data.test"
        )
    if options.local:
        folder = Path(options.local)
        if not folder.is_dir():
            parent = folder.parent
            names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
            raise UserError(f"data.local={options.local} is not a folder{nearest(folder.name, names)}")


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """What tells whether a local copy changed: names, sizes and times of its files."""
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _resolve(options: HubOptions) -> str:
    """The commit that is read. The hub is asked once: no network then means one line, not minutes of retries.

    Where the user has set HF_HUB_OFFLINE, a commit that is named is looked for in the caches of `datasets` alone.
    """
    pinned = bool(options.revision and _COMMIT.fullmatch(options.revision))
    from huggingface_hub import HfApi, constants

    if pinned and constants.HF_HUB_OFFLINE:
        return str(options.revision)
    try:
        found = HfApi().dataset_info(options.repo, revision=options.revision, timeout=_TIMEOUT_SECONDS).sha
    except Exception as error:  # noqa: BLE001 - the client raises its transport's errors, which differ by version
        raise UserError(_reason(options, options.train, error)) from error
    if not pinned:
        log.warning("data.repo=%s is not pinned; data.revision=%s would pin what is read now", options.repo, found)
    return str(found)


def _joined(rows: Mapping[str, Iterator[str]], join: str) -> dict[str, Sequence[str]]:
    """One document of each split, which memory has to hold."""
    texts = {split: list(found) for split, found in rows.items()}
    return {split: [join.join(found)] if found else [] for split, found in texts.items()}


def _by_split(rows: Mapping[str, Iterator[str]], options: HubOptions, folder: Path | None) -> dict[str, Sequence[str]]:
    """Documents without empty ones; splits that the repository lacks come out of the training rows."""
    documents = {split: Spool(folder) for split in SPLITS}
    valid = options.valid_fraction if options.valid is None else 0.0
    test = options.test_fraction if options.test is None else 0.0
    for split, texts in rows.items():
        for text in texts:
            document = text.strip()
            if document:
                documents[held_out(document, valid, test) if split == "train" else split].append(document)
    return dict(documents)


def _local(options: HubOptions) -> dict[str, Any]:
    """How `load_dataset` is told of a local copy: without the repository's card its configurations are just folders."""
    folder = Path(str(options.local))
    if options.config is None:
        return {"path": str(folder)}
    if (folder / options.config).is_dir():
        return {"path": str(folder), "data_dir": options.config}
    if (folder / "README.md").is_file():
        return {"path": str(folder), "name": options.config}
    others = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "data"]
    if others:
        raise UserError(
            f"data.config={options.config} is not a folder of {options.local}{nearest(options.config, others)}"
        )
    return {"path": str(folder)}


def _check_field(options: HubOptions, columns: list[str]) -> None:
    if options.field not in columns:
        raise UserError(
            f"data.field={options.field} is not a column of {_named(options)}{nearest(options.field, columns)}"
        )


def _named(options: HubOptions) -> str:
    config = f" ({options.config})" if options.config else ""
    return (f"data.local={options.local}" if options.local else f"data.repo={options.repo}") + config


def _reason(options: HubOptions, split: str, error: Exception) -> str:
    """One line for whatever kept the dataset from being read."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if options.local:
        return f"{_named(options)}: the {split} split cannot be read ({first}); it needs data/{split}-*.parquet"
    return (
        f"{_named(options)}: the {split} split cannot be read ({first}); "
        "use data=text data.path=<file or folder>, or data.local=<folder in the hub's layout>"
    )
