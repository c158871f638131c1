"""Bounds of trained methods on a corpus that they were not trained on (zero-shot), in the tokens of their own study.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.registry import build_options
from harness.data.base import DataSource, TokenData
from harness.data.tokenizers import Tokenizer, TokenizerSpec
from harness.errors import UserError
from harness.store import read_json, write_json
from harness.study.bound import bound_of
from harness.study.cells import Cell, make_cells
from harness.study.session import Session
from harness.study.steps import load_sampler

FILE = "elsewhere.json"


class _AsItIs(TokenizerSpec):
    """A tokenizer that learns nothing of the corpus."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def build(self, documents: Sequence[str], cache: Path, key: str) -> Tokenizer:
        return self.tokenizer


def corpus_elsewhere(session: Session, node: dict[str, Any]) -> TokenData:
    """The corpus of a node `data` of a configuration, in the tokens of the study; raises `UserError` where it has no such."""
    own, (source_cls, options) = session.data, build_options(node, "data")
    if own.tokenizer_text is None:
        raise UserError(f"data={own.name}, of the run: is no text, so that no other text can be written in its tokens")
    spec_cls, spec_options = build_options(session.tree["tokenizer"], "tokenizer")
    tokenizer: Tokenizer = spec_cls(spec_options).restore(own.tokenizer_text())
    most, tokenizer.most_lost = tokenizer.most_lost, 1.0
    source: DataSource = source_cls(options)
    found = source.load(session.cfg.scale.length, session.cache, _AsItIs(tokenizer))
    name = own.facts["tokenizer"]
    if found.tokenizer_text is None or found.vocab_size != own.vocab_size:
        raise UserError(f"data {found.name} is no text that {name}, the run's tokenizer, could write; choose a text")
    lost = float(found.facts.get(f"{tokenizer.loses}_test", 0.0))
    if lost > most:
        raise UserError(
            f"data {found.name}: {name}, the run's tokenizer, cannot write {lost:.0%} of it; choose another text"
        )
    return found


def measure_elsewhere(session: Session, node: dict[str, Any], only: Sequence[str] = ()) -> tuple[TokenData, list[dict]]:
    """(the corpus, a row for each cell with a bound): nats per token and per character of its test sequences, with errors.

    `only` are methods, or method/sampler; empty: all that a study compares. Rows are kept in the study's folder. Raises
    `UserError`.
    """
    data, rows = corpus_elsewhere(session, node), list[dict[str, Any]]()
    test_NL = data.some("test", session.cfg.study.bound_sequences)
    characters_N = np.array([len(data.decode(row)) for row in test_NL.tolist()])
    for cell in make_cells(session):
        chosen = not only or cell.method in only or f"{cell.method}/{cell.sampler}" in only
        there = not cell.weights.trained or cell.weights.model.exists()
        if not chosen or not there or cell.role in ("probe", "floor"):
            continue
        total_N, found = bound_of(session, cell, load_sampler(session, cell), test_NL)
        if total_N is not None:
            rows.append(_row(session, cell, data, total_N, characters_N) | {"estimator": found["bound_estimator"]})
    path = session.folder / FILE
    known = read_json(path) if path.exists() else {}
    write_json(path, known | {f"{row['data']} {row['cell']} {row['seed']}": row for row in rows})
    return data, rows


def rows_elsewhere(session: Session, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows that `measure_elsewhere` has kept of these cells, as they are now."""
    path, keys = session.folder / FILE, {cell.key for cell in cells}
    return [row for row in read_json(path).values() if row["key"] in keys] if path.exists() else []


def _row(
    session: Session, cell: Cell, data: TokenData, total_N: np.ndarray, characters_N: np.ndarray
) -> dict[str, Any]:
    per_character = total_N.sum() / characters_N.sum()
    # Of a ratio of sums: the deviation of what each sequence adds to it.
    apart_N, size = total_N - per_character * characters_N, math.sqrt(len(total_N))
    facts = cell.facts(session)
    own = read_json(facts) if facts.exists() else {}
    several = len(total_N) > 1
    return {
        "data": data.name,
        "fingerprint": data.fingerprint,
        "title": cell.title,
        "cell": f"{cell.method}/{cell.sampler}",
        "key": cell.key,
        "seed": cell.seed,
        "sequences": len(total_N),
        "nats_per_token": float(total_N.mean()) / data.length,
        "nats_per_token_se": float(total_N.std(ddof=1)) / size / data.length if several else None,
        "nats_per_character": float(per_character),
        "nats_per_character_se": float(apart_N.std(ddof=1)) / size / float(characters_N.mean()) if several else None,
        "own_nats_per_token": own.get("nelbo_nats_per_token"),
    }
