"""What a study shows while it runs and when it ends: rows, parquet, tracking runs, report and the printed table.

Everything is made again from the cells' files, so a study that was killed and continued publishes the same as one that
was not. Times of tracked points are those in the files; a replay adds nothing twice.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.config.load import flatten
from harness.jobs.schedule import TaskKey
from harness.provenance import git_state, provenance
from harness.report.pictures import COLUMNS, ROWS, Block, choose_budgets
from harness.report.report import write_report
from harness.report.table import results_table
from harness.report.truth import TRUTH
from harness.store import ResultsTable, read_json, read_jsonl, write_json, write_text
from harness.study.cells import Cell, left_out
from harness.study.rows import make_rows, samples_of
from harness.study.session import Session
from harness.study.steps import samples_file
from harness.study.tasks import JUDGE
from harness.tracking.base import Tracker, TrackingOptions
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.null import NullTracker

#: Files of a former configuration of the same study move to `earlier/<its key>` instead of being written over.
_RESULTS = ("results.parquet", "report.md", "config.yaml", "protocol.json", "figures", "samples")
_TRUTH = tuple(part for name in TRUTH for part in (name, f"{name}_se"))


class Publisher:
    """Publishes one study; a context manager that marks the tracking runs as killed where it is left by an error."""

    def __init__(self, session: Session, cells: list[Cell], data: Cell, command: str) -> None:
        self.session, self.cells, self.data, self.command = session, cells, data, command
        self.git = git_state()
        self.facts = provenance(session.numerics.device)
        self.tracker: Tracker = _tracker(session)
        self.runs: dict[str, str] = {}
        self.parent = ""
        self._refreshed = 0.0

    # ---- life -----------------------------------------------------------------------------------------------------
    def __enter__(self) -> Publisher:
        try:
            self._open()
        except BaseException:
            self.tracker.close()
            raise
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            for run in (*self.runs.values(), self.parent):
                if run:
                    self.tracker.finish(run, "KILLED")
        self.tracker.close()

    def _open(self) -> None:
        self.key = self._state()["key"]
        write_text(self.session.folder / "config.yaml", yaml.safe_dump(self.session.tree, sort_keys=False))
        self._open_runs()

    def _open_runs(self) -> None:
        """Open the runs, or bring the tags of open ones up to date."""
        s = self.session
        config = {k: str(v) for k, v in flatten(s.tree).items()}
        self.parent = self.tracker.open_study(s.cfg.study.name, config, self._tags(), key=self.key)
        self.tracker.log_dataset(
            self.parent,
            s.data.name,
            s.data.fingerprint[:36],
            str(s.tree["data"].get("path") or s.data.name),
            s.data.facts,
        )
        for cell in (*self.cells, self.data):
            # What a method does not read is not among its parameters.
            own = {
                k: v for k, v in config.items() if not k.startswith(("methods.", "tracking.", "study.seeds", "only"))
            }
            own |= {"method": cell.method, "sampler": cell.sampler, "seed": str(cell.seed)}
            node = dict(s.tree["methods"].get(cell.method, {}))
            samplers = node.pop("samplers", {})
            node["sampler"] = samplers.get(cell.sampler, {})
            own |= {f"method.{k}": str(v) for k, v in flatten(node).items()}
            name = f"{s.cfg.study.name}/{cell.name}"
            tags = self._tags() | {"method": cell.method, "sampler": cell.sampler, "role": cell.role, "cell": cell.key}
            self.runs[cell.name] = self.tracker.open_cell(self.parent, name, f"{cell.name}-{cell.key}", own, tags)
            self.tracker.log_dataset(
                self.runs[cell.name], s.data.name, s.data.fingerprint[:36], s.data.name, s.data.facts
            )

    def _state(self) -> dict[str, str]:
        """The study's key in tracking, kept in its folder; results of another configuration are put aside first."""
        s = self.session
        path = s.folder / "state.json"
        config = s.config_key(self.cells)
        state = read_json(path) if path.exists() else None
        if state is not None and state["config"] != config:
            aside = s.folder / "earlier" / state["key"]
            aside.mkdir(parents=True, exist_ok=True)
            for name in _RESULTS:
                if (s.folder / name).exists():
                    os.replace(s.folder / name, aside / name)
            print(f"another configuration ran here before; its results are in {aside}", file=sys.stderr)
            state = None
        if state is None:
            state = {"key": f"{s.cfg.study.name}-{uuid.uuid4().hex[:12]}", "config": config}
            write_json(path, state)
        return state

    def _tags(self) -> dict[str, str]:
        s = self.session
        tags = {k: str(v) for k, v in self.facts.items() if not isinstance(v, dict)}
        return tags | {
            "git_sha": self.git.sha,
            "git_dirty": str(self.git.dirty),
            "study": s.cfg.study.name,
            "data": s.data.name,
            "data_fingerprint": s.data.fingerprint,
            "protocol": self.protocol() or "",
        }

    # ---- while it runs --------------------------------------------------------------------------------------------
    def protocol(self) -> str | None:
        """The protocol's identity, known once the judge is ready."""
        path = self.session.folder / "protocol.json"
        return read_json(path)["id"] if path.exists() else None

    def job_done(self, key: TaskKey, cell: Cell | None) -> None:
        """A job's files are there: show them."""
        if key == JUDGE:
            self._open_runs()  # the protocol, which is one of the tags, is known from here on
        if cell is not None and key[0] in ("train", "score"):
            self._log_cell(cell)
        self.refresh()

    def tick(self) -> None:
        """Curves of what trains now, every few seconds."""
        if time.monotonic() - self._refreshed > 10:
            self._refreshed = time.monotonic()
            for cell in self.cells:
                if cell.weights.curves.exists() and not cell.weights.model.exists():
                    self._log_curves(cell)

    def refresh(self) -> None:
        """Write all rows that are known to `results.parquet`."""
        table = self._table()
        if table.rows:
            table.write(self.session.folder / "results.parquet")

    def _table(self) -> ResultsTable:
        protocol = self.protocol()
        common = {
            "git_sha": self.git.label,
            "device": self.session.numerics.device.split(":")[0],
            "dtype": self.session.numerics.precision,
        }
        rows: list[dict[str, Any]] = []
        for cell in (*self.cells, self.data):
            run = self.tracker.resolve(self.runs[cell.name])
            rows += [row | common | {"mlflow_run_id": run} for row in make_rows(self.session, cell, protocol)]
        return ResultsTable(rows)

    def _log_curves(self, cell: Cell) -> None:
        points = [
            {"name": name, "value": value, "step": line["step"], "time_ms": line["time_ms"]}
            for line in read_jsonl(cell.weights.curves)
            for name, value in line["values"].items()
        ]
        self.tracker.log_curves(self.runs[cell.name], points)

    def _log_cell(self, cell: Cell) -> None:
        run, protocol = self.runs[cell.name], self.protocol()
        self._log_curves(cell)
        rows = make_rows(self.session, cell, protocol)
        names = [c.name for c in self.session.columns] + ["seconds_per_seq", "flops_per_seq", "equivalent_nfe"]
        for row in rows:
            if row["temperature"] == self.session.headline_temperature(cell):
                scores = {n: row.get(n) for n in (*names, *(f"{n}_se" for n in names[: len(self.session.columns)]))}
                scores |= {n: row.get(n) for n in ("nelbo_nats_per_token", *_TRUTH)}
                self.tracker.log_scores(run, scores, row["nfe"] or 0, row["time_ms"])
        if rows:
            self.tracker.log_samples(run, samples_of(self.session, cell, 8))
            self.tracker.finish(run, "FINISHED", max(row["time_ms"] for row in rows))

    # ---- the end --------------------------------------------------------------------------------------------------
    def finish(self, failures: dict[str, str]):
        """Report, figures, tracking's artifacts; returns what is printed."""
        from harness.study.runner import Outcome

        s = self.session
        for cell in (*self.cells, self.data):
            self._log_cell(cell)
            if cell.name in failures:
                self.tracker.finish(self.runs[cell.name], "FAILED")
        frame = self._table().frame()
        if frame.empty:
            self.tracker.finish(self.parent, "FAILED")
            return Outcome("no result", [], failures)
        shown = [column for column in s.columns if column.headline]
        report = write_report(s.folder, frame, shown, self._context(failures))
        for path in sorted((s.folder / "figures").glob("*.png")):
            self.tracker.log_figure(self.parent, path)
        for name in ("report.md", "results.parquet", "config.yaml", "protocol.json"):
            self.tracker.log_file(self.parent, s.folder / name)
        self.tracker.finish(self.parent, "FAILED" if failures else "FINISHED")
        places = [f"report   {report}", f"results  {s.folder / 'results.parquet'}", f"samples  {s.folder / 'samples'}"]
        if s.cfg.tracking.enabled:
            places.append(f"MLflow   {s.cfg.tracking.uri or 'make ui'}" + _ui_hint(s))
        return Outcome(results_table(frame, shown), places, failures)

    def _context(self, failures: dict[str, str]) -> dict[str, Any]:
        s = self.session
        protocol = read_json(s.folder / "protocol.json")
        samples = list(itertools.chain.from_iterable(samples_of(s, c, 1) for c in (self.data, *self.cells)))
        curves: dict[str, dict[str, list]] = {}
        for cell in self.cells:
            points = [
                (line["step"], line["values"]["valid/bound_nats_per_token"])
                for line in read_jsonl(cell.weights.curves)
                if "valid/bound_nats_per_token" in line["values"]
            ]
            if points:
                curves.setdefault(cell.title, []).append(points)
        return {
            "title": f"Study {s.cfg.study.name}: {s.cfg.study.question or s.data.name}",
            "judge": protocol["judge"],
            "judge_ppl": protocol["held_out_ppl"],
            "n": s.cfg.study.samples,
            "seeds": ", ".join(map(str, s.cfg.study.seeds)),
            "device": f"{self.facts.get('device', s.numerics.device)}, {s.numerics.precision}",
            "protocol": protocol["id"],
            "command": self.command,
            "git_sha": self.git.label,
            "data": s.data.facts | {"fingerprint": s.data.fingerprint},
            "provenance": {k: v for k, v in self.facts.items() if not isinstance(v, dict)},
            "definitions": {c.name: getattr(m, "definition", "") for m in s.metrics for c in m.columns},
            "notes": [*left_out(s), *(f"{name} failed: {reason}" for name, reason in failures.items())],
            "samples": samples,
            "pictures": self._pictures(),
            "curves": {"Bound on held-out text": {"unit": "nats per token", "series": curves}} if curves else {},
        }

    def _pictures(self) -> list[Block]:
        """First samples of the first seed of each method, at the budgets that fit on a sheet; none for other data."""
        s = self.session
        if s.data.render is None:
            return []
        first: dict[str, Cell] = {}
        for cell in (self.data, *self.cells):
            first.setdefault(cell.method, cell)
        titles = [cell.title for cell in first.values()]
        blocks = []
        for cell in first.values():
            title = cell.title if titles.count(cell.title) == 1 else f"{cell.method}: {cell.title}"
            wanted = choose_budgets([part.nfe for part in cell.parts])
            for part in cell.parts:
                path = samples_file(s, cell, part)
                if part.nfe in wanted and part.temperature == s.headline_temperature(cell) and path.exists():
                    ids = [line["ids"] for line in read_jsonl(path)[: ROWS * COLUMNS]]
                    nfe = None if cell is self.data else part.nfe
                    blocks.append(Block(title, nfe, s.data.render(np.asarray(ids))))
        return blocks


def _tracker(session: Session) -> Tracker:
    t = session.cfg.tracking
    if not t.enabled:
        return NullTracker()
    options = TrackingOptions(t.enabled, t.uri, t.experiment, t.system_metrics)
    tracker = MlflowTracker(options, Path(session.cfg.runs_dir))
    tracker.connect()  # a store that is not there is refused before anything in the study's folder is moved
    return tracker


def _ui_hint(session: Session) -> str:
    if session.cfg.tracking.uri:
        return ""
    return f"  (or: python -m harness.tracking.ui {Path(session.cfg.runs_dir)})"
