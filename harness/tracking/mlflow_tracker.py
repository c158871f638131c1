"""Studies in MLflow: one parent run a study, one child run a cell, scores with NFE as the step.

Uses run ids throughout and never MLflow's global active run, so that any run can be reopened. MLflow's SQL store keeps
a metric point once for equal (run, key, time, step, value), so that a replay is harmless; times are the files'.
"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config.schema import TrackingConfig
from harness.errors import UserError
from harness.tracking import link, names
from harness.tracking.base import Point, Status, Tracker
from harness.tracking.mlflow_client import connect, reason, service_errors, sorted_errors
from harness.tracking.outbox import RETRY_SECONDS, Outbox, Rejected
from harness.tracking.system_metrics import SystemMetrics
from harness.tracking.uri import resolve_store

KEY_TAG = "harness.key"
CHANGED_TAG = "harness.changed_params"
_PARENT_TAG = "mlflow.parentRunId"
_TABLES_TAG = "mlflow.loggedArtifacts"
_WAITING = "waiting:"
#: Where `harness.tracking.ui` serves a store without a server.
_OWN_SERVER = "http://127.0.0.1:5000"
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100


class MlflowTracker(Tracker):
    """Talks to one MLflow store. Only the process that runs the study may hold one; workers write files."""

    def __init__(
        self,
        options: TrackingConfig,
        runs_dir: Path,
        retry_seconds: float = RETRY_SECONDS,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """`warn` takes the one line that is said when the store goes away (default: standard error)."""
        self.options = options
        self.runs_dir = Path(runs_dir).resolve()
        self.store = resolve_store(options.uri, self.runs_dir)
        ours = self.store.uri == f"sqlite:///{self.runs_dir / 'mlflow.db'}"
        self.where = f"python -m harness.tracking.ui {runs_dir}" if ours else self.store.shown
        self._outbox = Outbox(self.store.shown, retry_seconds, warn)
        self._client: Any = None
        self._experiment: str | None = None
        self._ids: dict[str, str] = {}
        self._made_here: set[str] = set()
        self._held: dict[tuple[str, str], set[tuple[str, int, int]]] = {}
        self._system: SystemMetrics | None = None

    # ---- runs -----------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Make sure that the store answers, creating it if it is ours; raises `UserError`."""
        if self._client is None:
            self._client = connect(self.store)

    def open_study(self, name, params, tags, key=None) -> str:
        self.connect()
        key = key or f"study:{name}:{self.runs_dir}"
        try:
            self._experiment = self._experiment_id(self.options.experiment or name)
            run_id = self._open(name, key, params, tags, parent=None)
        except service_errors() as error:
            why = reason(error, self.store.uri)
            raise UserError(
                f"the study cannot be opened in tracking at {self.store.shown} ({why}): "
                "set tracking.experiment=, tracking.uri= or tracking.enabled=false"
            ) from None
        if self.options.system_metrics:
            self._system = self._system or SystemMetrics(self.store.uri)
            self._system.start(run_id)
        return run_id

    def open_cell(self, parent_id, name, key, params, tags) -> str:
        handle = _WAITING + uuid.uuid4().hex

        def call() -> None:
            self._ids[handle] = self._open(name, key, params, tags, parent=self._id(parent_id))

        self._send(call)
        return self._ids.get(handle, handle)

    def finish(self, run_id, status: Status, time_ms=None) -> None:
        end = time_ms if time_ms is not None else int(time.time() * 1000)
        if self._system is not None and self._system.run_id == self.resolve(run_id):
            self._system.stop()
        self._send(lambda: self._client.set_terminated(self._id(run_id), status=status, end_time=end))

    def resolve(self, run_id) -> str | None:
        real = self._ids.get(run_id, run_id)
        return None if real.startswith(_WAITING) else real

    def close(self) -> None:
        if self._system is not None:
            self._system.stop()
        if self._client is not None:
            self._outbox.flush()

    # ---- what is logged -------------------------------------------------------------------------------------------
    def log_curves(self, run_id, points: Sequence[Point]) -> None:
        clean = names.names({point["name"] for point in points})
        self._log_metrics(
            run_id,
            [
                (clean[point["name"]], names.curve_value(point["value"]), int(point["time_ms"]), int(point["step"]))
                for point in points
            ],
        )

    def log_scores(self, run_id, scores, nfe, time_ms) -> None:
        known = {key: float(v) for key, v in scores.items() if v is not None and math.isfinite(v)}
        clean = names.names(known)
        self._log_metrics(run_id, [(clean[key], value, int(time_ms), int(nfe)) for key, value in known.items()])

    def _log_metrics(self, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        def send(batch: list[Metric]) -> None:
            self._send(lambda: self._log_new(self._id(run_id), batch))

        for start in range(0, len(rows), _METRICS_PER_CALL):
            send([Metric(*row) for row in rows[start : start + _METRICS_PER_CALL]])

    def _log_new(self, run_id: str, metrics: list[Any]) -> None:
        """Log the points that the run does not hold yet; MLflow would find that out too, at a millisecond a point."""
        new = {}
        for metric in metrics:
            point = (repr(float(metric.value)), metric.timestamp, metric.step)
            if point not in self._points_of(run_id, metric.key):
                new[metric.key, point] = metric
        if new:
            self._client.log_batch(run_id, metrics=list(new.values()))
        for key, point in new:
            self._held[run_id, key].add(point)

    def _points_of(self, run_id: str, key: str) -> set[tuple[str, int, int]]:
        """(value, time, step) of the points of a metric: read once for a run that was reopened, then kept up."""
        if (run_id, key) not in self._held:
            history = [] if run_id in self._made_here else self._client.get_metric_history(run_id, key)
            self._held[run_id, key] = {(repr(float(m.value)), m.timestamp, m.step) for m in history}
        return self._held[run_id, key]

    def log_samples(self, run_id, rows: Sequence[Mapping[str, Any]], name="samples") -> None:
        # Not `client.log_table`: it appends to a table that exists, so that a replay would double the rows.
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        text = json.dumps(table, ensure_ascii=False, default=str)
        path = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.json"

        def call() -> None:
            real = self._id(run_id)
            self._client.log_text(real, text, path)
            entry = {"path": path, "type": "table"}
            tables = json.loads(self._client.get_run(real).data.tags.get(_TABLES_TAG, "[]"))
            if entry not in tables:
                self._client.set_tag(real, _TABLES_TAG, json.dumps([*tables, entry]))

        self._send(call)

    def log_file(self, run_id, path, folder=None) -> None:
        self._send(lambda: self._client.log_artifact(self._id(run_id), str(path), folder))

    def log_dataset(self, run_id, name, digest, source, profile=None) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, where = ("http", "url") if re.match(r"https?://", source) else ("local", "uri")
        dataset = Dataset(
            name=names.shorten(name, 500),
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({where: source}),
            profile=json.dumps(profile, default=str) if profile else None,
        )
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self._send(lambda: self._client.log_inputs(self._id(run_id), [used]))

    def set_tags(self, run_id, tags) -> None:
        from mlflow.entities import RunTag

        marks = [RunTag(key, value) for key, value in names.tags(tags).items()]
        self._send(lambda: self._client.log_batch(self._id(run_id), tags=marks))

    def describe(self, run_id, text) -> None:
        lines = text.splitlines()
        while len("\n".join(lines)) > names.MAX_TAG:
            lines = [*lines[:-2], "(and more: see report.html among the artifacts)"]
        self.set_tags(run_id, {"mlflow.note.content": "\n".join(lines)})

    def link(self) -> str:
        server = self.store.shown if self.store.uri.startswith("http") else _OWN_SERVER
        return link.charts(server, self._experiment) if self._experiment else ""

    def children(self, parent_id) -> dict[str, dict[str, str]]:
        query, token = f"tags.`{_PARENT_TAG}` = '{parent_id}'", None
        found: dict[str, dict[str, str]] = {}
        try:
            while True:
                page = self._client.search_runs([self._experiment], query, max_results=1000, page_token=token)
                found |= {run.info.run_id: {**run.data.tags, "status": run.info.status} for run in page}
                token = page.token
                if not token:
                    return found
        except service_errors():
            return {}

    # ---- inside ---------------------------------------------------------------------------------------------------
    def _send(self, call: Callable[[], Any]) -> None:
        """The one way to MLflow after `open_study`: `call` runs now, or waits until the store answers again."""
        if self._client is None:
            raise RuntimeError("open_study comes first")

        def sorted_call() -> None:
            with sorted_errors(self._client, self.store):
                call()

        self._outbox.send(sorted_call)
        if self._system is not None and not self._outbox.waiting:
            self._system.revive()

    def _id(self, run_id: str) -> str:
        real = self.resolve(run_id)
        if real is None:
            raise Rejected("its run could not be opened")
        return real

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(
                f"tracking.experiment={name} was deleted in MLflow: restore it there or choose another name"
            )
        if found is not None:
            return found.experiment_id
        folder = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "_"
        artifacts = f"{self.store.artifacts}/{folder}" if self.store.artifacts else None
        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except service_errors():
            # Another study may have made it in between.
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _open(self, name: str, key: str, params: Mapping[str, Any], tags: Mapping[str, Any], parent: str | None) -> str:
        """The run with this key (in this parent), back to RUNNING; made if there is none."""
        from mlflow.entities import Param, RunTag

        wanted, marks = names.params(params), names.tags(tags)
        marks[KEY_TAG] = names.key(key)
        query = f"tags.`{KEY_TAG}` = '{marks[KEY_TAG]}'"
        if parent is not None:
            marks[_PARENT_TAG] = parent
            query += f" AND tags.`{_PARENT_TAG}` = '{parent}'"
        order = ["attributes.start_time ASC"]
        found = self._client.search_runs([self._experiment], query, max_results=1, order_by=order)
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING", name=name)
        else:
            run = self._client.create_run(self._experiment, run_name=name, tags=marks)
            self._made_here.add(run.info.run_id)
        held = run.data.params if found else {}
        # A parameter cannot be changed in MLflow once it is logged: what a later command changed is put in a tag.
        changed = {key: value for key, value in wanted.items() if key in held and held[key] != value}
        if changed:
            marks[CHANGED_TAG] = names.shorten(json.dumps(changed, sort_keys=True), names.MAX_TAG)
        new = [Param(key, value) for key, value in wanted.items() if key not in held]
        if found:  # a new run has them already
            self._client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in marks.items()])
        for start in range(0, len(new), _PARAMS_PER_CALL):
            self._client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_CALL])
        return run.info.run_id


def open_tracker(
    cfg: TrackingConfig, runs_dir: str | Path, experiment: str | None = None, system_metrics: bool | None = None
) -> Tracker:
    """MLflow's, or one that does nothing (`tracking.enabled=false`); it connects when it is first used.

    `experiment` is taken where the configuration names none, `system_metrics` instead of what it says. Raises `UserError`
    for an address that cannot be one.
    """
    if not cfg.enabled:
        return Tracker()
    load = cfg.system_metrics if system_metrics is None else system_metrics
    return MlflowTracker(TrackingConfig(True, cfg.uri, cfg.experiment or experiment, load), Path(runs_dir))
