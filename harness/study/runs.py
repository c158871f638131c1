"""A study in tracking: a run of its own, and below it one for each cell, opened when there is something to put into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config.compose import flatten
from harness.metrics.base import Column
from harness.report.aggregate import error_name
from harness.report.truth import TRUTH
from harness.store import read_jsonl
from harness.study import match
from harness.study.cells import Cell
from harness.study.rows import samples_of
from harness.study.session import Session
from harness.tracking.base import Point, Status
from harness.tracking.mlflow_tracker import open_tracker

#: What is shown of a row beside the metrics' columns.
_COSTS = ("seconds_per_seq", "flops_per_seq", "equivalent_nfe")
_ROW_BOUND, _BOUND = "nelbo_nats_per_token", "valid/bound_nats_per_token"
#: What a cell's run does not repeat: other methods, and what no method reads.
_NOT_OF_A_CELL = ("methods.", "tracking.", "study.seeds", "only")


class StudyRuns:
    """`bounds` holds the validation bounds of curves, by file."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tracker = open_tracker(session.cfg.tracking, session.cfg.runs_dir)
        self.tracker.connect()  # a store that is not there is refused before anything in the study's folder is moved
        self.parent, self.tags = "", dict[str, str]()
        self.bounds: dict[Path, list[tuple[int, float]]] = {}
        self._config = {key: str(value) for key, value in flatten(session.tree).items()}
        self._runs: dict[str, str] = {}
        self._curve_bytes: dict[str, int] = {}  # of each cell's curves that were sent
        self._scored: set[str] = set()

    def open(self, key: str, tags: dict[str, str]) -> None:
        """Create or reopen the study's run; `tags` are those of all runs."""
        s = self.session
        self.tags = tags
        self.parent = self.tracker.open_study(s.cfg.study.name, self._config, tags, key=key)
        self._log_data(self.parent, str(s.tree["data"].get("path") or s.data.name))

    def of(self, cell: Cell) -> str:
        """The run of a cell, opened at first need."""
        if cell.name not in self._runs:
            method = dict(self.session.tree["methods"].get(cell.method, {}))
            sampler = method.pop("samplers", {}).get(cell.sampler, {})
            own = {key: str(value) for key, value in flatten({"method": method, "sampler": sampler}).items()}
            kind = {"method": cell.method, "sampler": cell.sampler}
            params = {key: value for key, value in self._config.items() if not key.startswith(_NOT_OF_A_CELL)}
            own_tags = {key: value for key, value in self.tags.items() if key != "git_sha"} | _commit(cell)
            self._runs[cell.name] = self.tracker.open_cell(
                self.parent,
                self._name(cell),
                f"{cell.name}-{cell.key}",
                params | own | kind | {"seed": str(cell.seed)},
                own_tags | kind | {"role": cell.role, "cell": cell.key},
            )
            self._log_data(self._runs[cell.name], self.session.data.name)
        return self._runs[cell.name]

    def _name(self, cell: Cell) -> str:
        """What a person reads in a list of runs: title and seed, after the task of a study that has several."""
        task = self.session.cfg.study.name.partition("/")[2]
        seed = f" · seed {cell.seed}" if cell.sampler else ""
        return f"{f'{task}: ' if task else ''}{cell.title}{seed}"

    def _log_data(self, run: str, source: str) -> None:
        data = self.session.data
        self.tracker.log_dataset(run, data.name, data.fingerprint[:36], source, data.facts)

    def tag(self, **tags: str) -> None:
        """Tags that have become known, for all runs."""
        self.tags |= tags
        for run in (self.parent, *self._runs.values()):
            self.tracker.set_tags(run, tags)

    def log_curves(self, cell: Cell) -> None:
        """Send the curves of a cell's model, if they have grown."""
        size = cell.weights.curves.stat().st_size if cell.weights.curves.exists() else 0
        if size == self._curve_bytes.get(cell.name, 0):
            return
        self._curve_bytes[cell.name] = size
        lines = read_jsonl(cell.weights.curves)
        points: list[Point] = [
            {"name": _curve_name(name), "value": value, "step": line["step"], "time_ms": line["time_ms"]}
            for line in lines
            for name, value in line["values"].items()
        ]
        self.tracker.log_curves(self.of(cell), points)
        self.bounds[cell.weights.curves] = [
            (line["step"], line["values"][_BOUND]) for line in lines if _BOUND in line["values"]
        ]

    def log_scores(self, cell: Cell, rows: list[dict[str, Any]], again: bool = True) -> None:
        """Send scores and samples and close the cell's run; `again=False` leaves a cell that was sent as it is."""
        if not rows or (cell.name in self._scored and not again):
            return
        run, temperature = self.of(cell), cell.headline_temperature
        self.tracker.set_tags(run, {"git_sha": rows[0]["git_sha"]})
        for row in rows:
            if row["temperature"] == temperature:
                values = logged_scores(row, self.session.columns)
                for nfe in self._places(cell, row["nfe"] or 0):
                    self.tracker.log_scores(run, values, nfe, row["time_ms"])
        self.tracker.log_samples(run, samples_of(self.session, cell, 8, cell.title))
        self.tracker.finish(run, "FINISHED", max(row["time_ms"] for row in rows))
        self._scored.add(cell.name)

    def _places(self, cell: Cell, nfe: int) -> list[int]:
        """Where a row stands on the axis of budgets: its NFE; for what only gives the scale, a line along the methods' own."""
        budgets = self.session.cfg.study.nfe
        return [nfe] if cell.role in ("method", "floor", "probe") else sorted({min(budgets), max(budgets)})

    def finish(self, status: Status, paths: tuple[Path, ...] = (), note: str = "", **tags: str) -> None:
        """Put a description, tags, figures and files into the study's run and close it."""
        self.tracker.set_tags(self.parent, tags)
        if note:
            self.tracker.describe(self.parent, note)
        for path in paths:
            self.tracker.log_file(self.parent, path, "figures" if path.suffix == ".png" else None)
        self.tracker.finish(self.parent, status)

    def kill(self) -> None:
        """Mark all runs that are not finished as killed."""
        for run in (*(run for name, run in self._runs.items() if name not in self._scored), self.parent):
            if run:
                self.tracker.finish(run, "KILLED")


def logged_scores(row: dict[str, Any], columns: Sequence[Column]) -> dict[str, float | None]:
    """What tracking shows of a row, None where it is not known.

    MLflow makes a chart of each name and a section of each prefix, in the order of the alphabet: results, sampling (costs),
    scores_other, standard_errors; then train, valid and valid_instruments of the curves.
    """
    first = [column.name for column in columns if column.headline and not column.aside]
    more = [*(column.name for column in columns if column.name not in first), *TRUTH]
    shown = {f"results/{name}": name for name in (*first, _ROW_BOUND)}
    shown |= {f"sampling/{name}": name for name in _COSTS} | {f"scores_other/{name}": name for name in more}
    shown |= {f"standard_errors/{name}": error_name(name) for name in (*first, *more)}
    return {place: row.get(name) for place, name in shown.items()}


def _curve_name(name: str) -> str:
    """`train/...` and the bound as they are; its parts and the methods' own instruments in a section of their own."""
    kind, _, rest = name.partition("/")
    return name if kind != "valid" or name == _BOUND else f"valid_instruments/{rest.replace('/', '_')}"


def _commit(cell: Cell) -> dict[str, str]:
    """The commit that trains the cell's model, from the moment on that it is written down."""
    return {"git_sha": match.read_plan(cell.weights).made["commit"]} if cell.weights.plan.exists() else {}
