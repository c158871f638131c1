"""Tracking against a real SQLite store: links, steps, replays; and what is said when a store is wrong or away."""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from harness.config.schema import TrackingConfig
from harness.errors import UserError
from harness.tracking import mlflow_client
from harness.tracking.base import Tracker
from harness.tracking.mlflow_tracker import CHANGED_TAG, MlflowTracker
from harness.tracking.outbox import Down, Outbox, Rejected

T0 = 1_700_000_000_000


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """One store for the module: making its tables takes seconds. A space in the path must do no harm."""
    return tmp_path_factory.mktemp("my runs")


def _tracker(runs_dir, **more) -> MlflowTracker:
    return MlflowTracker(TrackingConfig(system_metrics=False), runs_dir, **more)


def _play(tracker: MlflowTracker, runs_dir: Path, name: str) -> dict[str, str]:
    """What a study says to its tracker, from files whose times are fixed."""
    figure = runs_dir / "figure.png"
    figure.write_bytes(b"not really a figure")
    ids = {"study": tracker.open_study(name, {"method.width": 64, "note": "x" * 7000}, {"git_sha": "abc"})}
    tracker.log_dataset(ids["study"], "books", "f" * 64, "/data/books", {"tokens": 10})
    for seed in range(2):
        cell = tracker.open_cell(ids["study"], f"{name}/seq/seed{seed}", f"cell-{seed}", {"seed": seed}, {"m": "seq"})
        points = [{"name": "loss/total", "value": 1 / (s + 1), "step": s, "time_ms": T0 + s} for s in range(1500)]
        points.append({"name": "loss/total", "value": math.nan, "step": 7000, "time_ms": T0})
        tracker.log_curves(cell, points)
        for nfe in (2, 8, 32):
            tracker.log_scores(cell, {"gen_ppl": 100.0 / nfe + seed, "mauve": None, "x": math.inf}, nfe, T0 + nfe)
        tracker.log_samples(cell, [{"nfe": 2, "text": 'a, "b"\nc'}, {"nfe": 8, "text": "é"}])
        tracker.log_file(cell, figure, "figures")
        tracker.finish(cell, "FINISHED", T0 + 99)
        ids[f"cell{seed}"] = cell
    tracker.finish(ids["study"], "FINISHED", T0 + 100)
    tracker.close()
    return ids


def _rows(runs_dir, table: str, run_id: str) -> list[tuple]:
    """Straight from the database, past MLflow's own reading of it."""
    with sqlite3.connect(runs_dir / "mlflow.db") as base:
        return sorted(base.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run_id,)).fetchall())  # noqa: S608


def test_a_study_is_in_the_store_once_however_often_it_is_replayed(runs_dir, capfd):
    first = _play(_tracker(runs_dir), runs_dir, "replayed")
    tables = ("metrics", "params", "tags", "latest_metrics")
    before = {(t, run): _rows(runs_dir, t, run) for t in tables for run in first.values()}
    assert len(before["metrics", first["cell0"]]) == 1501 + 3
    again = _play(_tracker(runs_dir), runs_dir, "replayed")
    assert again == first
    assert {(t, run): _rows(runs_dir, t, run) for t in tables for run in first.values()} == before
    client = _tracker(runs_dir)
    client.connect()
    runs = client._client.search_runs([client._client.get_experiment_by_name("replayed").experiment_id])
    assert len(runs) == 3 and {run.info.status for run in runs} == {"FINISHED"}
    out = capfd.readouterr()
    assert out.out == "" and out.err == "", "MLflow and alembic are kept quiet"

    by_id = {run.info.run_id: run for run in runs}
    study, cell = by_id[first["study"]], by_id[first["cell1"]]
    assert cell.data.tags["mlflow.parentRunId"] == first["study"]
    assert cell.info.run_name == "replayed/seq/seed1" and cell.info.end_time == T0 + 99
    assert study.data.params["method.width"] == "64" and len(study.data.params["note"]) == 6000
    assert study.data.tags["mlflow.source.git.commit"] == "abc"
    assert [(d.dataset.name, d.dataset.digest) for d in study.inputs.dataset_inputs] == [("books", "f" * 36)]

    history = client._client.get_metric_history(first["cell1"], "gen_ppl")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(2, 51.0), (8, 13.5), (32, 4.125)]
    assert "mauve" not in cell.data.metrics and "x" not in cell.data.metrics, "unknown is not a number"

    artifacts = Path(cell.info.artifact_uri.removeprefix("file://").replace("%20", " "))
    assert artifacts.is_relative_to(runs_dir / "mlartifacts")
    assert (artifacts / "figures" / "figure.png").is_file()
    table = json.loads((artifacts / "samples.json").read_text())
    assert table == {"columns": ["nfe", "text"], "data": [[2, 'a, "b"\nc'], [8, "é"]]}
    assert json.loads(cell.data.tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]


def test_the_store_itself_keeps_equal_points_once(runs_dir):
    """What a replay rests on when a process died between sending points and knowing that they arrived."""
    tracker = _tracker(runs_dir)
    run = tracker.open_study("raw", {}, {})
    from mlflow.entities import Metric

    points = [Metric("a", 1.5, T0, 3), Metric("a", 2.5, T0, 4), Metric("b", math.nan, T0, 3)]
    for batch in (points, points, points[:1], [*points, Metric("a", 1.5, T0 + 1, 3)]):
        tracker._client.log_batch(run, metrics=batch)
    assert len(_rows(runs_dir, "metrics", run)) == 4, "three points, and one of another time"


def test_a_study_cut_off_goes_on_in_the_same_runs(runs_dir):
    first = _tracker(runs_dir)
    study = first.open_study("cut", {"a": 1, "b": 2}, {}, key="it's a key")
    cell = first.open_cell(study, "cut/seq/seed0", "k", {}, {})
    first.log_scores(cell, {"gen_ppl": 5.0}, 2, T0)
    first.finish(study, "KILLED")
    second = _tracker(runs_dir)
    assert second.open_study("cut", {"a": 1, "b": 3, "c": 4}, {}, key="it's a key") == study
    assert second.open_cell(study, "cut/seq/seed0", "k", {}, {}) == cell
    assert second.open_cell(study, "cut/seq/seed1", "k2", {}, {}) != cell
    run = second._client.get_run(study)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1", "b": "2", "c": "4"} and json.loads(run.data.tags[CHANGED_TAG]) == {"b": "3"}
    assert second.open_study("cut", {}, {}, key="another") != study


def test_system_metrics_are_sampled_and_stop(runs_dir, monkeypatch):
    monkeypatch.setattr("harness.tracking.system_metrics._SECONDS_BETWEEN", 0.2)
    tracker = MlflowTracker(TrackingConfig(), runs_dir)
    run = tracker.open_study("watched", {}, {})
    thread = tracker._system._monitor._process
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and len(_rows(runs_dir, "metrics", run)) < 5:
        time.sleep(0.2)
    tracker.finish(run, "FINISHED")
    keys = {row[0] for row in _rows(runs_dir, "metrics", run)}
    assert "system/cpu_utilization_percentage" in keys
    assert not thread.is_alive()
    tracker.close()


def _break(tracker, error):
    """Let every call of the client fail with `error`."""
    real = tracker._client

    def fail(*_, **__):
        raise error

    class Broken:
        def __getattr__(self, name):
            return fail

    tracker._client = Broken()
    return real


def test_a_server_that_dies_in_the_middle_costs_one_line_and_no_point(runs_dir):
    from mlflow.exceptions import MlflowException

    lines: list[str] = []
    tracker = _tracker(runs_dir, retry_seconds=0.0, warn=lines.append)
    study = tracker.open_study("dies", {}, {})
    real = _break(tracker, MlflowException("API request to http://h failed: refused"))
    cell = tracker.open_cell(study, "dies/seq/seed0", "k", {"seed": 0}, {})
    for nfe in (2, 4):
        tracker.log_scores(cell, {"gen_ppl": 8.0 / nfe}, nfe, T0)
    tracker.log_samples(cell, [{"text": "a"}])
    tracker.finish(cell, "FINISHED")
    assert tracker.resolve(cell) is None
    assert len(lines) == 1 and "\n" not in lines[0] and "nothing is lost" in lines[0] and "study goes on" in lines[0]
    tracker._client = real
    tracker.log_scores(cell, {"gen_ppl": 1.0}, 8, T0)
    run = real.get_run(tracker.resolve(cell))
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "0"}
    assert [m.step for m in real.get_metric_history(run.info.run_id, "gen_ppl")] == [2, 4, 8]
    assert len(lines) == 1


def test_a_record_that_is_refused_does_not_hold_up_the_rest(runs_dir, tmp_path):
    lines: list[str] = []
    tracker = _tracker(runs_dir, warn=lines.append)
    study = tracker.open_study("refused", {}, {})
    tracker.log_file(study, tmp_path / "not there.txt")
    tracker.log_scores("0" * 32, {"gen_ppl": 1.0}, 2, T0)
    tracker.log_scores(study, {"gen_ppl": 1.0}, 2, T0)
    assert len(lines) == 1 and "refused" in lines[0]
    assert tracker._client.get_run(study).data.metrics == {"gen_ppl": 1.0}


def test_outbox_keeps_the_order_and_waits_between_tries():
    now, up, sent, lines = [0.0], [False], [], []
    box = Outbox("x", retry_seconds=30, warn=lines.append, clock=lambda: now[0])
    tries = [0]

    def call(value):
        def run():
            tries[0] += 1
            if not up[0]:
                raise Down("away")
            if value == 1:
                raise Rejected("bad")
            sent.append(value)

        return run

    for value in range(3):
        box.send(call(value))
    assert tries[0] == 1, "no second try within the pause"
    now[0] = 31.0
    box.send(call(3))
    assert tries[0] == 2 and sent == []
    up[0], now[0] = True, 62.0
    box.send(call(4))
    assert sent == [0, 2, 3, 4] and not box.waiting
    assert [line.split()[0] for line in lines] == ["warning:", "warning:"]

    def bug():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        box.send(bug)


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_dead_server_is_one_line_soon_and_without_the_password(tmp_path, scheme):
    address = f"{scheme}://ann:s3cr%40t@127.0.0.1:{_closed_port()}/x?token=hush"
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        MlflowTracker(TrackingConfig(uri=address), tmp_path).open_study("s", {}, {})
    assert time.monotonic() - began < 10
    text = str(caught.value)
    assert "\n" not in text and "127.0.0.1" in text and "tracking.uri=" in text and "tracking.enabled=false" in text
    assert "connection refused" in text
    assert not any(secret in text for secret in ("s3cr", "hush", "ann:"))
    assert caught.value.__cause__ is None


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(mlflow_client._PROBE, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(UserError, match="no answer in time"):
            MlflowTracker(TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), tmp_path).connect()
    assert time.monotonic() - began < 8
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") != "1", "the short limit is for the probe only"


def test_a_broken_database_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database at all, but long enough to look at" * 20)
    with pytest.raises(UserError, match="file is not a database") as caught:
        MlflowTracker(TrackingConfig(), tmp_path).connect()
    assert "\n" not in str(caught.value)


def test_a_tracker_that_is_off_takes_every_call(tmp_path):
    with Tracker() as tracker:
        study = tracker.open_study("s", {}, {})
        cell = tracker.open_cell(study, "c", "k", {}, {})
        tracker.log_curves(cell, [])
        tracker.log_scores(cell, {}, 2, T0)
        tracker.log_samples(cell, [])
        tracker.log_file(cell, tmp_path, "figures")
        tracker.log_file(cell, tmp_path)
        tracker.log_dataset(cell, "d", "x", "y")
        tracker.finish(cell, "FINISHED")
        assert tracker.resolve(cell) is None
    assert list(tmp_path.iterdir()) == []
