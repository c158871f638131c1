"""A search in a real SQLite store: the parent, its children, links both ways, and what is put right in the end."""

from __future__ import annotations

import contextlib
import sqlite3
from types import SimpleNamespace

import optuna
import pytest

from harness.config.schema import TrackingConfig
from harness.search import publish, runner
from harness.search.publish import NUMBER, REASON, STATE, SearchLog, score_points
from harness.search.trials import STOPPED
from harness.tracking.mlflow_tracker import MlflowTracker
from tests.kit.tune_kit import BEGAN, TrialState, add, make_config, make_loaded, make_study

CURVES = [{"name": "loss/total", "value": 1 / s, "step": s, "time_ms": 10**12 + s} for s in range(1, 101)]
PARAMS = {"methods.seq.slots": 3, "methods.seq.noise": 0.1}
SCORES = {"excess@4": 0.5, "excess_se@4": 0.01, "entropy@4": 1.5, "excess@2": 1.0}
FACTS = {"score": SCORES, "seconds": {"train": 2.0, "sample": 1.0}, "entropy": -0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One store for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture
def made(root, monkeypatch, request):
    """(loaded, study), a search of its own in the store."""
    monkeypatch.setattr(publish, "curve_points", lambda loaded, params: CURVES)
    loaded = make_loaded(root, make_config(constrained=True), tracked=True, identity=request.node.name)
    return loaded, make_study()


def _client(loaded):
    tracker = MlflowTracker(TrackingConfig(system_metrics=False), loaded.base.cfg.runs_dir)
    tracker.connect()
    return tracker._client


def _trial(study: optuna.Study, log: SearchLog, values: list[float] | None = None, **more) -> str:
    """A trial from its beginning to its end; its run."""
    number = len(study.trials)
    run = log.begin(number, PARAMS)
    assert log.begin(number, PARAMS) == run, "asked twice it is the same"
    add(study, PARAMS, values, run_id=run, **more)
    log.end(study.trials[number])
    return run


def test_the_study_is_the_parent_and_each_trial_a_child_linked_both_ways(made):
    loaded, study = made
    log = SearchLog(loaded, study)
    parent = log.open()
    run = _trial(study, log, [0.5], **FACTS)
    client = _client(loaded)
    top, child = client.get_run(parent), client.get_run(run)
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.tags[NUMBER] == "0" and study.trials[0].user_attrs["run_id"] == run, "both ways"
    assert child.data.params == {"trial": "0", "methods.seq.slots": "3", "methods.seq.noise": "0.1"}
    assert child.info.status == "FINISHED" and child.data.tags[STATE] == "complete" and top.info.status == "RUNNING"
    assert child.info.run_name == "toy/latent/0" and top.info.run_name == "toy/latent"

    history = {m.step: m.value for m in client.get_metric_history(run, "excess")}
    assert history == {2: 1.0, 4: 0.5}, "NFE is the step"
    assert child.data.metrics["objective.excess"] == 0.5 and child.data.metrics["constraint.entropy"] == -0.5
    assert child.data.metrics["seconds.train"] == 2.0
    curve = client.get_metric_history(run, "loss/total")
    assert len(curve) == 100 and max(m.step for m in curve) == 100

    assert top.data.params["tune.trials"] == "40" and top.data.params["study.name"] == "toy"
    everything = {**top.data.params, **top.data.tags}
    assert not any("secret" in str(value) for value in everything.values()), "no password"
    _check_files(loaded, log, parent, client)


def _check_files(loaded, log: SearchLog, parent: str, client) -> None:
    figure = loaded.folder / "figures" / "history.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(b"figure")
    (loaded.folder / "best.yaml").write_text("overrides: []\n")
    log.tracker.log_file(parent, figure, "figures")
    log.tracker.log_file(parent, loaded.folder / "best.yaml")
    log.tracker.log_samples(parent, [{"number": 0}], "trials")
    log.tracker.set_tags(parent, {"best.trial": 0})
    log.tracker.finish(log.run, "FINISHED")
    log.tracker.close()
    assert {f.path for f in client.list_artifacts(parent)} == {"figures", "best.yaml", "trials.json"}
    assert [f.path for f in client.list_artifacts(parent, "figures")] == ["figures/history.png"]
    top = client.get_run(parent)
    assert top.info.status == "FINISHED" and top.data.tags["best.trial"] == "0"


def test_states_are_marked(made):
    loaded, study = made
    log = SearchLog(loaded, study)
    log.open()
    pruned = _trial(study, log, pruned="at step 2 of 9")
    failed = _trial(study, log, state=TrialState.FAIL, failure="the loss is nan")
    lost = _trial(study, log, state=TrialState.FAIL, lost="its worker died")
    log.tracker.close()
    client = _client(loaded)
    seen = {run: client.get_run(run) for run in (pruned, failed, lost)}
    states = [(seen[r].info.status, seen[r].data.tags[STATE]) for r in seen]
    assert states == [("KILLED", "pruned"), ("FAILED", "failed"), ("KILLED", "killed")]
    assert seen[failed].data.tags[REASON] == "the loss is nan"
    assert "loss/total" in seen[pruned].data.metrics and "objective.excess" not in seen[pruned].data.metrics
    assert "loss/total" not in seen[lost].data.metrics


def test_the_parent_is_found_again_and_other_searches_are_not(made):
    loaded, study = made
    first = SearchLog(loaded, study).open()
    assert SearchLog(loaded, study).open() == first
    loaded.identity += "-other"
    assert SearchLog(loaded, study).open() != first
    loaded.identity = loaded.identity.removesuffix("-other")
    later = make_study()
    later.set_user_attr("created", "2027-01-01T00:00:00+0000")
    assert SearchLog(loaded, later).open() != first, "the same search in another storage"


def test_the_end_puts_right_what_a_kill_left(made, monkeypatch):
    """Killed before the result was stored; after it, before it was logged; while it was logged; and a run that is missing."""
    loaded, study = made
    killed = SearchLog(loaded, study)
    parent = killed.open()
    lost = killed.begin(0, PARAMS)
    add(study, PARAMS, state=TrialState.FAIL, run_id=lost, lost="command a died")
    silent = killed.begin(1, PARAMS)
    add(study, PARAMS, [0.5], run_id=silent, **FACTS)
    half = killed.begin(2, PARAMS)
    add(study, PARAMS, [0.5], run_id=half, **FACTS)
    with monkeypatch.context() as patch:
        patch.setattr(killed.tracker, "finish", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            killed.end(study.trials[2])
    killed.tracker.close()
    add(study, PARAMS, [0.5], **FACTS)
    study.enqueue_trial(PARAMS)

    client, log = _client(loaded), SearchLog(loaded, study)
    assert log.open() == parent
    points_before = len(client.get_metric_history(half, "entropy"))
    runs = log.settle()
    assert runs[0] == lost and runs[1] == silent and runs[2] == half and set(runs) == {0, 1, 2, 3}
    seen = {number: client.get_run(run) for number, run in runs.items()}
    assert [seen[n].data.tags[STATE] for n in range(4)] == ["killed", "complete", "complete", "complete"]
    assert [seen[n].info.status for n in range(4)] == ["KILLED", "FINISHED", "FINISHED", "FINISHED"]
    assert seen[0].data.tags[REASON] == "command a died" and "objective.excess" not in seen[0].data.metrics
    for n in (1, 2, 3):
        assert seen[n].data.metrics["objective.excess"] == 0.5 and "loss/total" in seen[n].data.metrics
    assert points_before == len(client.get_metric_history(half, "entropy")) == 1, "no point twice"

    with sqlite3.connect(f"{loaded.base.cfg.runs_dir}/mlflow.db") as base:
        count = "SELECT (SELECT count(*) FROM metrics), (SELECT count(*) FROM runs), (SELECT count(*) FROM params)"
        before = base.execute(count).fetchone()
        assert log.settle() == runs and SearchLog(loaded, study).open() == parent
        assert base.execute(count).fetchone() == before, "nothing is left to be put right"


def test_a_command_that_is_stopped_marks_all_of_its_runs_as_killed(made, monkeypatch):
    loaded, study = made
    seen: list[str] = []

    def stopped(loaded, store, log) -> dict[str, str]:
        seen.extend([log.run, log.begin(0, PARAMS)])
        add(study, PARAMS, state=TrialState.FAIL, run_id=seen[1], **{STOPPED: True})
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "open_store", lambda loaded: SimpleNamespace(study=study, alone=contextlib.nullcontext))
    monkeypatch.setattr(runner, "_search", stopped)
    with pytest.raises(KeyboardInterrupt):
        runner.run_search(loaded)
    assert [_client(loaded).get_run(run).info.status for run in seen] == ["KILLED", "KILLED"]


def test_a_service_that_is_away_stops_no_trial(made, monkeypatch):
    loaded, study = made
    log = SearchLog(loaded, study)
    log.open()
    with monkeypatch.context() as patch:
        patch.setattr(type(log.tracker._client), "create_run", _refuse)
        for _ in range(2):
            number = len(study.trials)
            assert log.begin(number, PARAMS) == "", "it has no run yet"
            add(study, PARAMS, [0.5], **FACTS)
            log.end(study.trials[number])
    log = SearchLog(loaded, study)
    log.open()
    runs = log.settle()
    assert set(runs) == {0, 1} and all(_client(loaded).get_run(r).data.tags[STATE] == "complete" for r in runs.values())


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError("tracking does not answer")


def test_without_tracking_nothing_is_opened(tmp_path):
    loaded, study = make_loaded(tmp_path), make_study()
    log = SearchLog(loaded, study)
    assert log.open() == "" and log.settle() == {} and log.begin(0, PARAMS) == ""
    add(study, PARAMS, [0.5], **FACTS)
    log.end(study.trials[0])
    log.tracker.finish(log.run, "FINISHED")
    log.tracker.close()
    assert not list((tmp_path / "runs").glob("mlflow*"))


def test_points(tmp_path):
    study = make_study()
    add(study, PARAMS, [3.0], score={"a@4": 1.0, "a@16": 2.0, "b@4": float("nan")})
    found = score_points(make_loaded(tmp_path), study.trials[0])
    assert [(p["name"], p["step"], p["value"]) for p in found] == [
        ("a", 4, 1.0),
        ("a", 16, 2.0),
        ("objective.excess", 4, 3.0),
    ]
    assert {p["time_ms"] for p in found} == {int(1000 * BEGAN.timestamp())}
