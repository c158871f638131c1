"""A tuning in a real SQLite store: the parent, its children, links both ways, and what is put right in the end."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace

import pytest

from harness.config.schema import TrackingConfig
from harness.errors import UserError
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tuning import publish, records
from harness.tuning.publish import BEGAN, NUMBER, REASON, STATE, TrialLog, TuneLog
from harness.tuning.records import points, score_points
from tests.tune_kit import TrialState, add, make_config, make_loaded, make_study

CURVES = [{"step": s, "time_ms": 10**12 + s, "values": {"loss/total": 1 / s}} for s in range(1, 101)]
PARAMS = {"methods.seq.slots": 3, "methods.seq.noise": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One store for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture
def made(root, monkeypatch, request):
    """(loaded, study), a search of its own in the store; this process has no connection yet."""
    monkeypatch.setattr(publish, "_KEPT", {})
    monkeypatch.setattr(records, "curves_of", lambda loaded, params: CURVES[:2])
    monkeypatch.setattr(publish, "curves_of", lambda loaded, params: CURVES[:2])
    loaded = make_loaded(root, make_config(constrained=True), tracked=True)
    loaded.identity = request.node.name
    return loaded, make_study()


def _result(value: float = 0.5) -> SimpleNamespace:
    scores = {"excess@4": value, "excess_se@4": 0.01, "entropy@4": 1.5, "entropy@4T0.8": 1.2, "excess@2": 2 * value}
    return SimpleNamespace(
        values=[value],
        constraints=[-0.5],
        scores=scores,
        seconds={"train": 2.0, "sample": 1.0},
        trained=True,
        curves=CURVES,
    )


def _client(loaded):
    tracker = MlflowTracker(TrackingConfig(system_metrics=False), loaded.base.cfg.runs_dir)
    tracker.connect()
    return tracker._client


def _ended(study, log: TrialLog, value: float | None = 0.5, how: str = "complete", **more) -> tuple[int, str]:
    """A trial from its beginning to its end, as a worker does it; its number and run."""
    run = log.open(len(study.trials), PARAMS)
    number = add(study, PARAMS, None if value is None else [value], run_id=run, **more)
    log.finish(None if value is None else _result(value), how, more.get("failure") or more.get("pruned") or "")
    return number, run


def test_the_study_is_the_parent_and_each_trial_a_child_linked_both_ways(made):
    loaded, study = made
    log = TuneLog(loaded, study)
    parent = log.open()
    trials = TrialLog(parent, loaded)
    number, run = _ended(study, trials)
    client = _client(loaded)
    top, child = client.get_run(parent), client.get_run(run)
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.tags[NUMBER] == "0" and study.trials[number].user_attrs["run_id"] == run, "both ways"
    assert child.data.params == {"trial": "0", "methods.seq.slots": "3", "methods.seq.noise": "0.1"}
    assert child.info.status == "FINISHED" and child.data.tags[STATE] == "complete" and top.info.status == "RUNNING"
    assert child.info.run_name == "toy/latent/0" and top.info.run_name == "toy/latent"

    history = {m.step: m.value for m in client.get_metric_history(run, "excess")}
    assert history == {2: 1.0, 4: 0.5}, "NFE is the step"
    assert {m.step: m.value for m in client.get_metric_history(run, "entropy_T0.8")} == {4: 1.2}
    assert child.data.metrics["objective.excess"] == 0.5 and child.data.metrics["constraint.entropy"] == -0.5
    assert child.data.metrics["seconds.train"] == 2.0
    curve = client.get_metric_history(run, "loss/total")
    assert 20 < len(curve) <= 40 and max(m.step for m in curve) == 100

    assert top.data.params["tune.trials"] == "40" and top.data.params["study.name"] == "toy"
    everything = {**top.data.params, **top.data.tags}
    assert not any("secret" in str(value) for value in everything.values()), "no password"
    figure = loaded.folder / "figures" / "history.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(b"figure")
    (loaded.folder / "best.yaml").write_text("overrides: []\n")
    log.files([figure, loaded.folder / "best.yaml", loaded.folder / "not there"])
    log.table("trials", [{"number": 0}])
    log.progress({"best.trial": 0})
    log.finish("FINISHED")
    log.close()
    assert {f.path for f in client.list_artifacts(parent)} == {"figures", "best.yaml", "trials.json"}
    assert [f.path for f in client.list_artifacts(parent, "figures")] == ["figures/history.png"]
    top = client.get_run(parent)
    assert top.info.status == "FINISHED" and top.data.tags["best.trial"] == "0"


def test_states_are_marked(made):
    loaded, study = made
    log = TuneLog(loaded, study)
    trials = TrialLog(log.open(), loaded)
    _, pruned = _ended(study, trials, None, "pruned", pruned="at step 2 of 9")
    _, failed = _ended(study, trials, None, "failed", state=TrialState.FAIL, failure="the loss is nan")
    client = _client(loaded)
    seen = {run: client.get_run(run) for run in (pruned, failed)}
    assert [(seen[r].info.status, seen[r].data.tags[STATE]) for r in seen] == [
        ("KILLED", "pruned"),
        ("FAILED", "failed"),
    ]
    assert seen[failed].data.tags[REASON] == "the loss is nan"
    assert "loss/total" in seen[pruned].data.metrics and "objective.excess" not in seen[pruned].data.metrics


def test_the_parent_is_found_again_and_other_searches_are_not(made):
    loaded, study = made
    first = TuneLog(loaded, study).open()
    assert TuneLog(loaded, study).open() == first
    loaded.identity += "-other"
    assert TuneLog(loaded, study).open() != first
    loaded.identity = loaded.identity.removesuffix("-other")
    later = make_study()
    later.set_user_attr("created", "2027-01-01T00:00:00+0000")
    assert TuneLog(loaded, later).open() != first, "the same search in another storage"


def test_the_end_puts_right_what_killed_workers_left(made, monkeypatch):
    """Killed before the result was stored; after it, before it was logged; while it was logged; and a run that is missing."""
    loaded, study = made
    log = TuneLog(loaded, study)
    parent = log.open()
    facts = {"scores": {"excess@4": 0.5}, "seconds": {"train": 2.0}, "constraints": [-0.5]}

    def worker() -> TrialLog:
        return TrialLog(parent, loaded)

    lost = worker().open(0, PARAMS)
    add(study, PARAMS, state=TrialState.FAIL, run_id=lost, lost="worker a died")
    silent = worker().open(1, PARAMS)
    add(study, PARAMS, [0.5], run_id=silent, **facts)
    cut = worker()
    half = cut.open(2, PARAMS)
    add(study, PARAMS, [0.5], run_id=half, **facts)
    finish = cut._tracker.finish
    monkeypatch.setattr(cut._tracker, "finish", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        cut.finish(
            SimpleNamespace(**(vars(_result()) | {"scores": facts["scores"], "seconds": facts["seconds"]})), "complete"
        )
    monkeypatch.setattr(cut._tracker, "finish", finish)
    add(study, PARAMS, [0.5], **facts)
    study.enqueue_trial(PARAMS)

    client = _client(loaded)
    points_before = len(client.get_metric_history(half, "excess"))
    runs = log.settle()
    assert runs[0] == lost and runs[1] == silent and runs[2] == half and set(runs) == {0, 1, 2, 3}
    seen = {number: client.get_run(run) for number, run in runs.items()}
    assert [seen[n].data.tags[STATE] for n in range(4)] == ["killed", "complete", "complete", "complete"]
    assert [seen[n].info.status for n in range(4)] == ["KILLED", "FINISHED", "FINISHED", "FINISHED"]
    assert seen[0].data.tags[REASON] == "worker a died" and "objective.excess" not in seen[0].data.metrics
    for n in (1, 2, 3):
        assert seen[n].data.metrics["objective.excess"] == 0.5 and "loss/total" in seen[n].data.metrics
        assert seen[n].data.tags[BEGAN].isdigit()
    assert points_before == len(client.get_metric_history(half, "excess")) == 1, "no point twice"

    with sqlite3.connect(f"{loaded.base.cfg.runs_dir}/mlflow.db") as base:
        count = "SELECT (SELECT count(*) FROM metrics), (SELECT count(*) FROM runs), (SELECT count(*) FROM params)"
        before = base.execute(count).fetchone()
        assert log.settle() == runs and TuneLog(loaded, study).open() == parent
        assert base.execute(count).fetchone() == before, "nothing is left to be put right"


def test_a_service_that_is_away_stops_no_trial(made, monkeypatch, capsys):
    loaded, study = made
    log = TuneLog(loaded, study)
    parent = log.open()

    def refuse(self, run):
        raise UserError("tracking at http://away does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "attach", refuse)
        for _ in range(2):
            _, run = _ended(study, TrialLog(parent, loaded))
            assert run == ""
    assert capsys.readouterr().err.count("does not answer") == 1, "said once"
    runs = log.settle()
    assert set(runs) == {0, 1} and all(_client(loaded).get_run(r).data.tags[STATE] == "complete" for r in runs.values())


def test_a_run_that_is_not_there_is_refused_in_one_line(made):
    loaded, study = made
    TuneLog(loaded, study).open()
    with pytest.raises(UserError, match="run 0123456789abcdef is not in tracking"):
        publish.make_tracker(loaded).attach("0123456789abcdef")


def test_without_tracking_nothing_is_opened(tmp_path):
    loaded, study = make_loaded(tmp_path), make_study()
    log = TuneLog(loaded, study)
    assert log.open() == "" and log.settle() == {}
    trial = TrialLog(log.run or None, loaded)
    assert trial.open(0, PARAMS) == ""
    trial.finish(_result(), "complete")
    log.finish("FINISHED")
    log.close()
    assert not list((tmp_path / "runs").glob("mlflow*"))


def test_points():
    assert [(p["name"], p["step"]) for p in points(CURVES[:3])] == [
        ("loss/total", 1),
        ("loss/total", 2),
        ("loss/total", 3),
    ]
    many = points(
        [{"step": s, "time_ms": s, "values": {"a": 1.0, **({"b": 2.0} if s == 1 else {})}} for s in range(1000)]
    )
    assert sum(p["name"] == "a" for p in many) == 40 and many[39]["step"] == 999 and many[-1]["name"] == "b"
    record = {"scores": {"a@4": 1.0, "a@16T0.9": 2.0, "b@4": float("nan")}, "values": [3.0], "objectives": {"o": 8}}
    found = score_points(record, 7)
    assert [(p["name"], p["step"], p["value"], p["time_ms"]) for p in found] == [
        ("a", 4, 1.0, 7), ("a_T0.9", 16, 2.0, 7), ("objective.o", 8, 3.0, 7),
    ]  # fmt: skip
