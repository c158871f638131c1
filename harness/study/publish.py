"""What a study shows while it runs and when it ends: rows, parquet, tracking runs, report and the printed table.

Everything is made again from the cells' files, so a study that was killed and continued publishes the same as one that
was not. Times of tracked points are those in the files; a replay adds nothing twice.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from harness.config.rows import budgets_of
from harness.jobs.schedule import TaskKey
from harness.provenance import git_state, provenance
from harness.report.aggregate import error_name, labels_of
from harness.report.equal import strict_rows
from harness.report.html import write_html
from harness.report.marks import resolutions
from harness.report.pictures import COLUMNS, ROWS, Block, choose_budgets
from harness.report.report import write_report
from harness.report.terminal import markdown_table, terminal_table
from harness.store import ResultsTable, read_json, write_parquet, write_text
from harness.study.cells import Cell, left_out
from harness.study.drawing import samples_file
from harness.study.folder import claim
from harness.study.outcome import Outcome
from harness.study.rows import StudyRows, commits_of, first_samples, samples_of
from harness.study.runs import StudyRuns
from harness.study.session import Session
from harness.study.tasks import JUDGE
from harness.tracking.base import Status

_CURVE_SECONDS, _TABLE_SECONDS = 10.0, 5.0


class Publisher:
    """Publishes one study; a context manager that marks the tracking runs as killed where it is left by an error.

    A job costs what its cell costs: files that have not changed are not read again, a cell's run in tracking is opened when
    there is something to put into it, and `results.parquet` is written every few seconds and at the end.
    """

    def __init__(self, session: Session, cells: list[Cell], data: Cell, command: str) -> None:
        self.session, self.cells, self.data, self.command = session, cells, data, command
        self.facts = provenance(session.numerics.device)
        self.metrics = [part for c in session.columns for part in (c.name, error_name(c.name))]
        self.runs = StudyRuns(session)
        self._protocol: dict[str, Any] = {}
        self._rows: StudyRows | None = None
        self._is_stale = False
        self._curves_at = self._table_at = -float("inf")

    # ---- life -----------------------------------------------------------------------------------------------------
    def __enter__(self) -> Publisher:
        try:
            key = claim(self.session, self.cells)
            self._read_protocol()
            write_text(self.session.folder / "config.yaml", yaml.safe_dump(self.session.tree, sort_keys=False))
            fresh = not (self.session.folder / "results.parquet").exists()
            self.runs.open(key, self._tags() | ({"git_sha": git_state().label} if fresh else {}))
        except BaseException:
            self.runs.tracker.close()
            raise
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            self.runs.kill()
        self.runs.tracker.close()

    def _tags(self) -> dict[str, str]:
        s = self.session
        tags = {k: str(v) for k, v in self.facts.items() if not isinstance(v, dict) and not k.startswith("git_")}
        return tags | {
            "study": s.cfg.study.name,
            "data": s.data.name,
            "data_fingerprint": s.data.fingerprint,
            "protocol": self.protocol() or "",
        }

    # ---- while it runs --------------------------------------------------------------------------------------------
    def protocol(self) -> str | None:
        """The protocol's identity, known once the judge is ready."""
        return self._protocol.get("id")

    def _read_protocol(self) -> None:
        path = self.session.folder / "protocol.json"
        if path.exists():
            self._protocol = read_json(path)
            if self._rows is None or self._rows.protocol != self._protocol["id"]:
                self._rows = StudyRows(self.session, self._protocol["id"])

    def job_done(self, key: TaskKey, cell: Cell | None) -> None:
        """A job's files are there: show them."""
        if key == JUDGE:
            self._read_protocol()
            self.runs.tag(protocol=self._protocol["id"])
        elif cell is not None and key[0] == "train":
            self.runs.log_curves(cell)
        elif cell is not None and key[0] == "score":
            self.runs.log_scores(cell, self._rows_of(cell))
        self._is_stale = True

    def tick(self) -> None:
        """Every few seconds: curves of what trains now, and the table where there is something new."""
        now = time.monotonic()
        if now - self._curves_at > _CURVE_SECONDS:
            self._curves_at = now
            for cell in self.cells:
                if not cell.weights.model.exists():
                    self.runs.log_curves(cell)
        if self._is_stale and now - self._table_at > _TABLE_SECONDS:
            self.refresh()

    def refresh(self) -> pd.DataFrame:
        """Write all rows that are known to `results.parquet`; returns them."""
        self._is_stale, self._table_at = False, time.monotonic()
        rows: list[dict[str, Any]] = []
        for cell in (*self.cells, self.data):
            known = self._rows_of(cell)
            run = {"mlflow_run_id": self.runs.tracker.resolve(self.runs.of(cell))} if known else {}
            rows += [row | run for row in known]
        frame = ResultsTable(rows, self.metrics).frame()
        if rows:
            write_parquet(self.session.folder / "results.parquet", frame)
        return frame

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        return [] if self._rows is None else self._rows.of(cell)

    # ---- the end --------------------------------------------------------------------------------------------------
    def finish(self, failures: dict[str, str]) -> Outcome:
        """Table, report, figures, tracking's artifacts; returns what is printed."""
        s = self.session
        for cell in (*self.cells, self.data):
            self.runs.log_curves(cell)
            self.runs.log_scores(cell, self._rows_of(cell), again=False)
            if {cell.name, cell.weights.name} & failures.keys():
                self.runs.tracker.finish(self.runs.of(cell), "FAILED")
        frame = self.refresh()
        if frame.empty:
            self.runs.finish("FAILED")
            return Outcome("no result", [], failures)
        shown = [column for column in s.columns if column.headline]
        gaps = {f"resolution/{each.column.name}": each.gap for each in resolutions(frame, shown)}
        self.runs.tracker.log_scores(self.runs.parent, gaps, 0, int(frame["time_ms"].max()))
        strict = strict_rows(frame, self._strict())
        report = write_report(s.folder, frame, shown, self._context(frame, failures))
        page = write_html(report)
        named = ("report.md", "table.tex", "results.parquet", "config.yaml", "protocol.json")
        files = [page, *(s.folder / name for name in named)]
        figures = sorted((s.folder / "figures").glob("*.png"))
        status: Status = "FAILED" if failures else "FINISHED"
        self.runs.finish(status, (*figures, *files), note=markdown_table(strict, shown), git_sha=commits_of(frame))
        places = [f"report   {page}", f"results  {s.folder / 'results.parquet'}", f"samples  {s.folder / 'samples'}"]
        tracker = self.runs.tracker
        if tracker.where:
            places += [f"MLflow   {tracker.where}", f"         {tracker.link()}"]
        return Outcome(terminal_table(strict, shown), places, failures)

    def _context(self, frame: pd.DataFrame, failures: dict[str, str]) -> dict[str, Any]:
        s = self.session
        labels = labels_of((cell.title, cell.method, cell.sampler) for cell in (self.data, *self.cells))
        first: dict[tuple[str, str], Cell] = {}  # of the seeds that have results
        models: dict[Path, str] = {}  # the label of the first cell of each model that has curves
        for cell in (self.data, *self.cells):
            kind = cell.method, cell.sampler
            if self._rows_of(cell):
                first.setdefault(kind, cell)
            if self.runs.bounds.get(cell.weights.curves):
                models.setdefault(cell.weights.curves, labels[kind])
        curves: dict[str, list[list[tuple[int, float]]]] = {}
        for path, label in models.items():
            curves.setdefault(label, []).append(self.runs.bounds[path])
        named = {labels[kind]: cell for kind, cell in first.items()}
        return {
            "title": f"Study {s.cfg.study.name}: {s.cfg.study.question or s.data.name}",
            "judge": self._protocol["judge"],
            "judge_ppl": self._protocol["held_out_ppl"],
            "n": s.cfg.study.samples,
            "equivalent_nfe": s.cfg.study.equivalent_nfe,
            "nfe": self._strict(),
            "seeds": ", ".join(map(str, s.cfg.study.seeds)),
            "device": f"{self.facts.get('device', s.numerics.device)}, {s.numerics.precision}",
            "protocol": self.protocol(),
            "command": self.command,
            "git_sha": commits_of(frame),
            "data": dict(s.data.facts) | {"fingerprint": s.data.fingerprint},
            "provenance": {k: v for k, v in self.facts.items() if not isinstance(v, dict) and not k.startswith("git_")},
            "notes": [*left_out(s), *(f"{name} failed: {reason}" for name, reason in failures.items())],
            "samples": [row for label, cell in named.items() for row in samples_of(s, cell, 1, label)],
            "pictures": self._pictures(named),
            "profiles": self._profiles(named),
            "curves": {"Bound on held-out text": {"unit": "nats per token", "series": curves}} if curves else {},
        }

    def _strict(self) -> list[int]:
        """The budgets that are asked of methods, where those of equal FLOPs are asked for too; else none: all rows are."""
        study = self.session.cfg.study
        compared = [(cell.method, cell.sampler) for cell in self.cells if cell.role == "method"]
        asked = {k for row in compared for k in budgets_of(study.nfe_of, study.nfe, *row)}
        return sorted(asked) if study.equivalent_nfe else []

    def _profiles(self, named: dict[str, Cell]) -> dict[str, list[tuple[str, int | None, list[float]]]]:
        """Numbers by place in a sequence, for one seed of each label."""
        found: dict[str, list[tuple[str, int | None, list[float]]]] = {}
        for label, cell in named.items():
            for nfe, profiles in self._rows.profiles(cell) if self._rows else ():
                for title, values in profiles.items():
                    found.setdefault(title, []).append((label, nfe, values))
        return found

    def _pictures(self, named: dict[str, Cell]) -> list[Block]:
        """First samples of one seed of each label, at the budgets that fit on a sheet; none for other data."""
        s, blocks, render = self.session, list[Block](), self.session.data.render
        if render is None:
            return blocks
        for label, cell in named.items():
            wanted = choose_budgets([part.nfe for part in cell.parts])
            for part in cell.parts:
                if part.nfe in wanted and part.temperature == cell.headline_temperature:
                    lines = first_samples(samples_file(s, cell, part), ROWS * COLUMNS)
                    nfe = None if cell is self.data else part.nfe
                    if lines:
                        blocks.append(Block(label, nfe, render(np.asarray([line["ids"] for line in lines]))))
        return blocks
