"""A judge's reading of a cell's samples by several processes: each reads a share, and the worker that scores takes it over.

Shapes: N texts, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.data.files import texts_digest
from harness.judges.base import TextScores
from harness.judges.scoring import CausalJudge
from harness.metrics.base import Samples
from harness.nn.slices import at_most
from harness.study.cells import Cell, Part
from harness.study.session import Session
from harness.training.checkpoint import load_tensors, save_tensors
from harness.training.distributed import Group


def samples_of(session: Session, cell: Cell, part: Part) -> tuple[Samples, dict[str, Any]]:
    """The sequences that were drawn with their texts, and what drawing them cost."""
    tensors, meta = load_tensors(cell.samples(session, part))
    return session.with_texts(tensors["x_NL"].numpy()), meta


def unread(session: Session, cell: Cell, protocol: str) -> list[Part]:
    """The parts that are neither scored nor read, where the judge is one that several processes can share."""
    if not isinstance(session.judge, CausalJudge) or not cell.weights.trained:
        return []
    parts = [part for part in cell.parts if not cell.scores(session, part, protocol).exists()]
    return [part for part in parts if not _file(session, cell, part, protocol).exists()]


def read_parts(
    session: Session, cell: Cell, protocol: str, progress: Callable[[str, int, int], None], group: Group
) -> None:
    """Read those parts as one process of a group; the first one writes down what all have read."""
    assert isinstance(session.judge, CausalJudge)
    parts = unread(session, cell, protocol)
    group.wait()  # all have looked before one writes
    for i, part in enumerate(parts):
        progress("read", i, len(parts))
        texts = session.judge.read_of(samples_of(session, cell, part)[0].texts)
        with at_most(session.cfg.compute.eval_tokens):
            scores, features_NF = session.judge.reader.read(texts, group)
        if group.leads:
            made = vars(scores) | {"features_NF": features_NF}
            tensors = {name: torch.from_numpy(value) for name, value in made.items() if value is not None}
            save_tensors(_file(session, cell, part, protocol), tensors, {"texts": texts_digest(texts)})


def take_over(session: Session, cell: Cell, part: Part, protocol: str, texts: Sequence[str]) -> None:
    """Give the judge what was read of the part, if it was, and delete the file: scores are what stays."""
    path = _file(session, cell, part, protocol)
    if not path.exists():
        return
    assert isinstance(session.judge, CausalJudge)
    tensors, meta = load_tensors(path)
    texts = session.judge.read_of(texts)
    if meta["texts"] == texts_digest(texts):  # or else they were drawn again
        made = {name: value.numpy() for name, value in tensors.items()}
        features_NF = made.pop("features_NF")
        session.judge.reader.keep(texts, TextScores(**made), features_NF)
    path.unlink()


def _file(session: Session, cell: Cell, part: Part, protocol: str) -> Path:
    scores = cell.scores(session, part, protocol)
    return scores.with_name(f"{scores.stem.replace('scores', 'read', 1)}.safetensors")
