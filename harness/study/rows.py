"""From the files of cells to rows of `results.parquet` and to excerpts of samples."""

from __future__ import annotations

import itertools
import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.metrics.base import PRINTED, PRINTED_IN
from harness.store import read_json
from harness.study.budget import full_call_flops
from harness.study.cells import DATA_ROW, Cell, Part
from harness.study.drawing import samples_file
from harness.study.session import Session

if TYPE_CHECKING:
    import pandas as pd  # start-up time of workers

_COMMITS = ("git_sha", "git_sha_train", "git_sha_score")


class StudyRows:
    """Rows of a study's cells under one protocol. A file that is there is finished work: each is read once and kept."""

    def __init__(self, session: Session, protocol: str) -> None:
        self.session, self.protocol = session, protocol
        self._read_once: dict[Path, dict[str, Any]] = {}
        self._rows: dict[tuple[str, Part], dict[str, Any]] = {}

    def of(self, cell: Cell) -> list[dict[str, Any]]:
        """One row for each part of the cell that has scores; what is not known is None."""
        return [row for part in cell.parts if (row := self._row(cell, part))]

    def profiles(self, cell: Cell) -> list[tuple[int | None, dict[str, list[float]]]]:
        """NFE and profiles (see `harness.metrics.base.Scores`) of each part at the headline temperature that has scores."""
        parts = [part for part in cell.parts if part.temperature == cell.headline_temperature]
        records = [(_nfe(cell, part), self._read(cell.scores(self.session, part, self.protocol))) for part in parts]
        return [(nfe, record.get("profiles", {})) for nfe, record in records if record]

    def _row(self, cell: Cell, part: Part) -> dict[str, Any] | None:
        row = self._rows.get((cell.name, part))
        if row is None:
            record = self._read(cell.scores(self.session, part, self.protocol))
            if record is None:
                return None
            facts = [self._read(path) for path in (cell.facts(self.session), cell.weights.cost)]
            row = self._row_of(cell, part, {key: v for each in facts for key, v in (each or {}).items()}, record)
            if None not in facts or cell.method == DATA_ROW:  # else the row is not whole yet
                self._rows[cell.name, part] = row
        return row

    def _read(self, path: Path) -> dict[str, Any] | None:
        """What a file says, but for single sequences, which would fill the memory; None while it is not there."""
        if path not in self._read_once and path.exists():
            self._read_once[path] = {key: v for key, v in read_json(path).items() if key != "per_sequence"}
        return self._read_once.get(path)

    @cached_property
    def _judge(self) -> str:
        return read_json(self.session.folder / "protocol.json")["judge"]

    def _row_of(self, cell: Cell, part: Part, facts: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        cost, bound = record["cost"], facts.get("nelbo_nats_per_token")
        flops = cost.get("flops_per_seq")
        return {
            "study": self.session.cfg.study.name,
            "data": self.session.data.name,
            "method": cell.method,
            "sampler": cell.sampler,
            "title": cell.title,
            "role": cell.role,
            "seed": cell.seed,
            "nfe": _nfe(cell, part),
            "nfe_latent": cost.get("nfe_latent"),
            "nfe_token": cost.get("nfe_token"),
            "temperature": part.temperature,
            "n": self.session.cfg.study.samples,
            "nelbo_nats_per_token": bound,
            "nelbo_se": facts.get("nelbo_se"),
            "bits_per_token": None if bound is None else bound / math.log(2.0),
            "flops_per_seq": flops,
            # What an exact answer costs says nothing about the cost of a network that has learnt it.
            "equivalent_nfe": None
            if flops is None or cell.role == "floor"
            else flops / full_call_flops(self.session.problem),
            "seconds_per_seq": cost.get("seconds_per_seq"),
            "params": facts.get("params"),
            "train_tokens": facts.get("train_tokens"),
            "train_flops": facts.get("train_flops"),
            "judge": self._judge,
            # Where nothing was drawn (held-out data), what scored it stands for all.
            **_made(facts.get("made"), cost.get("made") or record["made"], record["made"]),
            "protocol": self.protocol,
            "cell": cell.key,
            "time_ms": record["time_ms"],
            **cost.get("calls", {}),
            **_against_truth(self.session, facts, part),
            **_printed(facts, part),
            **record["values"],
        }


def _printed(facts: dict[str, Any], part: Part) -> dict[str, Any]:
    """What others have printed of the method at this budget, and where; no columns where nothing is known."""
    if not facts.get("printed") or part.temperature != 1.0:
        return {}
    found = {f"{PRINTED}{name}": by_nfe.get(str(part.nfe)) for name, by_nfe in facts["printed"].items()}
    return found | {PRINTED_IN: facts["printed_in"]}


def _made(train: dict[str, Any] | None, sample: dict[str, Any], score: dict[str, Any]) -> dict[str, Any]:
    """By which code and in which arithmetic the steps of a row were made."""
    return {
        "git_sha": sample["commit"],
        "git_sha_train": train and train["commit"],
        "git_sha_score": score["commit"],
        "device": sample["device"],
        "dtype": sample["dtype"],
        "torch": sample["torch"],
    }


def commits_of(frame: pd.DataFrame) -> str:
    """The commits that made the rows, each once."""
    found = {commit for column in _COMMITS for commit in frame[column].dropna()}
    return ", ".join(sorted(found))


def make_rows(session: Session, cell: Cell, protocol: str) -> list[dict[str, Any]]:
    """The rows of one cell."""
    return StudyRows(session, protocol).of(cell)


def _nfe(cell: Cell, part: Part) -> int | None:
    return None if cell.method == DATA_ROW else part.nfe


def _against_truth(session: Session, facts: dict[str, Any], part: Part) -> dict[str, Any]:
    """Distances from the data's own law, nats per sequence, with errors; no columns where it is not known."""
    if session.data.task is None:
        return {}
    reverse = facts.get("reverse", {}).get(str(part.nfe), {}) if part.temperature == 1.0 else {}
    return {
        "bound_excess_nats": facts.get("bound_excess_nats"),
        "bound_excess_nats_se": facts.get("bound_excess_nats_se"),
        "reverse_nats": reverse.get("nats"),
        "reverse_nats_se": reverse.get("se"),
        "path_nats": reverse.get("path_nats"),
        "path_nats_se": reverse.get("path_se"),
    }


def first_samples(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` lines of a file of samples (text and ids); none where it does not exist."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def samples_of(session: Session, cell: Cell, count: int, title: str) -> list[dict[str, Any]]:
    """The first `count` samples of each part that was drawn, as rows for tables of samples."""
    return [
        {"title": title, "nfe": _nfe(cell, part), "temperature": part.temperature, "text": line["text"]}
        for part in cell.parts
        for line in first_samples(samples_file(session, cell, part), count)
    ]
