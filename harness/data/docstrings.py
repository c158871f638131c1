"""English prose that is on every machine where this project is installed: docstrings of Python and of its dependencies.

Files are found through package metadata and read with `ast`, never imported. Which versions are installed decides the
text, so the content hash is part of every result's identity; machines with the same versions have the same corpus.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.fields import ranged
from harness.data.base import SPLITS, Corpus, DataSource, TokenData
from harness.data.chars import Characters, CharactersOptions
from harness.data.extract import documents_of_file
from harness.data.files import check_fractions, digest, held_out, load_documents, save_documents
from harness.data.groups import groups_of
from harness.data.pack import pack
from harness.data.prose import RULES, skeleton
from harness.data.tokenizers import TokenizerSpec
from harness.errors import UserError

log = logging.getLogger(__name__)

STANDARD_LIBRARY = "stdlib"
#: Documents with so many symbols of text8's alphabet in a row in common (seven words) go to one split; and groups of such
#: documents that would be more than this share of a held-out split go to the training split.
SHARED_RUN, LARGEST_GROUP = 40, 0.25
_SKIPPED_FOLDERS = (
    "test tests testing _testing idle_test conftest site-packages dist-packages __pycache__ _vendor vendor vendored "
    "third_party externals _external ensurepip lib2to3 node_modules"
)
#: Tests, and the sources from which other modules are generated with the same docstrings.
_SKIPPED_PREFIXES = ("test_", "modular_")
_PACKAGES = (
    "stdlib numpy pandas scipy sklearn matplotlib mpl_toolkits networkx sympy mpmath sqlalchemy mlflow fastapi "
    "pydantic starlette flask werkzeug jinja2 click rich alembic optuna hydra omegaconf datasets huggingface_hub "
    "fsspec aiohttp urllib3 requests joblib skops pyarrow PIL fontTools graphql docker databricks cryptography "
    "narwhals setuptools pip packaging pyparsing dateutil anyio opentelemetry gunicorn git mako psutil dill attr "
    "filelock faiss torch transformers"
)


@dataclass
class DocstringsOptions:
    """Which packages are read and what is held out."""

    packages: list[str] = field(default_factory=_PACKAGES.split)  # import names; stdlib is Python's own library
    valid_fraction: float = ranged(0.025, 0, 1, above=True, below=True)
    test_fraction: float = ranged(0.025, 0, 1, above=True, below=True)
    processes: int = ranged(2, 1)  # that read files


class Docstrings(DataSource):
    """Docstrings as prose; a paragraph that occurs again, but for names and numbers, is kept once.

    A document is held out by a hash of its text, or of that of the first of those that repeat each other in part.
    """

    Options = DocstringsOptions

    def load(self, length: int, cache: Path, tokenizer: TokenizerSpec) -> TokenData:
        return pack(self.corpus(cache), tokenizer, length, cache)

    def corpus(self, cache: Path) -> Corpus:
        """The documents, from `cache` where the same packages were read before."""
        options = self.options
        check_fractions(options.valid_fraction, options.test_fraction, usual=0.025)
        roots = {name: root for name in options.packages if (root := _root(name)) is not None}
        missing = len(options.packages) - len(roots)
        if missing:
            log.info("docstrings: %d of %d packages are not installed and are left out", missing, len(options.packages))
        if not roots:
            raise UserError(
                f"data.packages={options.packages}: none of these packages is installed; add {STANDARD_LIBRARY}"
            )
        key = digest(
            [RULES, SHARED_RUN, LARGEST_GROUP, _versions(roots), options.valid_fraction, options.test_fraction]
        )
        path = cache / f"docstrings-{key[:16]}.jsonl.gz"
        stored = load_documents(path)
        if stored is None:
            texts, facts = _read(roots, options)
            documents, split_facts = _split(texts, options)
            facts |= split_facts
            fingerprint = save_documents(path, documents, facts)
        else:
            documents, facts, fingerprint = stored
        for split in SPLITS:
            if not documents.get(split):
                raise UserError(
                    f"data.packages={options.packages}: no docstring fell into the {split} split; add packages"
                )
        facts = facts | {"packages_missing": missing}
        return Corpus("docstrings", documents, fingerprint, facts)


def _root(name: str) -> Path | None:
    """The folder (or single file) of an installed top-level package, found without importing it."""
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _versions(roots: dict[str, Path]) -> list[list[str]]:
    """(import name, version) of all that is read, in reading order: two machines that agree read the same files."""
    owners = importlib.metadata.packages_distributions()
    found = []
    for name in roots:
        if name == STANDARD_LIBRARY:
            found.append([name, platform.python_version()])
            continue
        versions = (f"{owner} {importlib.metadata.version(owner)}" for owner in sorted(set(owners.get(name, []))))
        found.append([name, ", ".join(versions)])
    return found


def _files(root: Path) -> list[Path]:
    """Python files under `root` in a stable order, without tests and bundled copies of other packages."""
    if root.is_file():
        return [root]
    skipped = set(_SKIPPED_FOLDERS.split())
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and not name.endswith(".dist-info")]
        found += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES) and not name.endswith("_test.py")
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _read(roots: dict[str, Path], options: DocstringsOptions) -> tuple[list[str], dict[str, Any]]:
    """All documents in reading order, and facts about them. The first copy of a paragraph stays."""
    paths = [path for root in roots.values() for path in _files(root)]
    print(f"docstrings: reading {len(paths)} files of installed packages, once", file=sys.stderr, flush=True)
    texts: list[str] = []
    seen: set[str] = set()
    paragraphs = 0
    for of_file in _extract(paths, options.processes):
        for document in of_file:
            fresh = []
            for paragraph in document:
                paragraphs += 1
                shape = skeleton(paragraph)
                if shape not in seen:
                    seen.add(shape)
                    fresh.append(paragraph)
            if fresh:
                texts.append("\n".join(fresh))
    facts: dict[str, Any] = {"packages": len(roots), "files": len(paths)}
    facts |= {"paragraphs_read": paragraphs, "paragraphs_kept": len(seen), "python": platform.python_version()}
    return texts, facts


def _split(texts: list[str], options: DocstringsOptions) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Documents by split, whole groups of those that repeat each other on one side; shares are shares of the text.

    Raises `UserError` where too much of the text is in groups that are too large to be held out.
    """
    print(
        f"docstrings: comparing {len(texts)} documents, so that near copies are in one split",
        file=sys.stderr,
        flush=True,
    )
    symbols = Characters(CharactersOptions("text8")).build([], Path(), "").encode_batch(texts)
    group_D, size_D = groups_of(symbols, SHARED_RUN), np.array([len(text) for text in texts])
    total, of_group_D = size_D.sum(), np.bincount(group_D, size_D, len(texts))[group_D]
    alone_D = np.bincount(group_D, minlength=len(texts))[group_D] == 1
    valid, test = options.valid_fraction, options.test_fraction
    free_D = alone_D | (of_group_D <= LARGEST_GROUP * min(valid, test) * total)
    free = float(size_D[free_D].sum() / total) if total else 1.0
    if valid + test >= free:
        raise UserError(
            f"data.valid_fraction={valid} and data.test_fraction={test}: only {free:.0%} of the text can be held out, the "
            "rest repeats itself; hold out less"
        )
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text, group, is_free in zip(texts, group_D, free_D, strict=True):
        split = held_out(texts[group], valid / free, test / free) if is_free else "train"
        documents[split].append(text)
    groups = len(np.unique(group_D))
    return documents, {"groups": groups, "never_held_out": round(1.0 - free, 4)}


def _extract(paths: list[Path], processes: int) -> list[list[list[str]]]:
    """Documents of each path, in order; by worker processes of our own, which work whatever started this process."""
    if processes <= 1 or len(paths) < 200:
        return [documents_of_file(path) for path in paths]
    import_root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [import_root, os.environ.get("PYTHONPATH")])),
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-W", "ignore", "-m", "harness.data.extract"]

    def read_share(share: list[Path]) -> list[list[list[str]]]:
        done = subprocess.run(
            command, input=json.dumps([str(path) for path in share]).encode(), capture_output=True, env=environment
        )
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"docstrings: a worker process failed ({reason[0]}); try data.processes=1")
        return [json.loads(line) for line in done.stdout.splitlines()]

    found: list[list[list[str]]] = [[] for _ in paths]
    with ThreadPoolExecutor(processes) as threads:
        shares = [paths[worker::processes] for worker in range(processes)]
        for worker, of_share in enumerate(threads.map(read_share, shares)):
            found[worker::processes] = of_share
    return found
