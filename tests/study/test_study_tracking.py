"""A study in MLflow's SQLite store: one parent, one child for each cell, NFE as the step, and nothing twice."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from harness.store import ResultsTable
from harness.tracking.mlflow_client import connect
from harness.tracking.uri import default_store
from tests.kit.study_kit import BUDGETS, ROWS, invoke


@pytest.fixture(scope="module")
def client(finished):
    return connect(default_store(finished.runs))


@pytest.fixture(scope="module")
def runs(client) -> dict:
    experiment = client.get_experiment_by_name("smoke")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_one_parent_and_a_child_for_each_cell(runs):
    cells = set(runs) - {"smoke"}
    assert len(cells) == len(ROWS) + 1
    assert {"Held-out data", "MDLM · seed 0", "SEQ · seed 0", "Autoregressive · seed 0", "Bigram · seed 0"} < cells
    parent = runs["smoke"].info.run_id
    assert {runs[cell].data.tags["mlflow.parentRunId"] for cell in cells} == {parent}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_scores_are_points_at_their_budget(runs, client, finished):
    frame = ResultsTable.read(finished.folder / "results.parquet").set_index(["method", "nfe"])
    run = runs["SEQ · seed 0"].info.run_id
    results, costs = (
        ("gen_nats_per_char", "entropy", "mauve", "nelbo_nats_per_token"),
        ("seconds_per_seq", "equivalent_nfe"),
    )
    for place in (*(f"results/{name}" for name in results), *(f"sampling/{name}" for name in costs)):
        points = {m.step: m.value for m in client.get_metric_history(run, place)}
        assert points == {k: pytest.approx(frame.loc[("seq", k), place.split("/")[1]]) for k in BUDGETS}
    # What only gives the scale is a line along the methods' budgets: 32 calls would squeeze them together.
    autoregressive = client.get_metric_history(runs["Autoregressive · seed 0"].info.run_id, "results/gen_nats_per_char")
    assert {m.step for m in autoregressive} == set(BUDGETS) and len({m.value for m in autoregressive}) == 1
    curve = client.get_metric_history(run, "valid/bound_nats_per_token")
    # SEQ's steps cost more than the plain denoiser's, and the study matches FLOPs.
    steps = [m.step for m in curve]
    assert steps == sorted(steps) and len(steps) >= 3 and steps[-1] < 60
    plain = runs["MDLM · seed 0"].info.run_id
    assert [m.step for m in client.get_metric_history(plain, "valid/bound_nats_per_token")] == [20, 40, 60]


def test_parameters_tags_and_data(runs, finished):
    run = runs["SEQ · seed 0"]
    assert run.data.params["method.slots"] == "4" and run.data.params["method._target_"] == "lddm.seq.SEQ"
    assert run.data.params["scale.width"] == "32" and run.data.params["seed"] == "0"
    assert not any(key.startswith("methods.") for key in run.data.params)
    assert runs["smoke"].data.params["methods.seq.slots"] == "4"
    for key in ("git_sha", "protocol", "data_fingerprint", "cell", "role"):
        assert run.data.tags[key]
    for some in (run, runs["smoke"]):
        (used,) = some.inputs.dataset_inputs
        assert used.dataset.name == "words" and used.dataset.digest


def test_figures_and_files_hang_on_the_parent(runs, client, finished):
    parent = runs["smoke"].info.run_id
    logged = {Path(item.path).name for item in client.list_artifacts(parent, "figures")}
    assert logged == {path.name for path in (finished.folder / "figures").glob("*.png")}
    assert {"resolution/gen_nats_per_char", "resolution/mauve"} <= set(runs["smoke"].data.metrics)
    files = {item.path for item in client.list_artifacts(parent)}
    assert {"report.md", "report.html", "results.parquet", "config.yaml", "protocol.json"} <= files
    about = runs["smoke"].data.tags["mlflow.note.content"]
    assert about.startswith("| Method | NFE |") and "| MDLM | 4 |" in about and len(about) <= 5000
    assert {item.path for item in client.list_artifacts(runs["SEQ · seed 0"].info.run_id)} >= {"samples.json"}


def test_rows_name_their_run(runs, finished):
    frame = ResultsTable.read(finished.folder / "results.parquet")
    places = [
        f"{title} · seed {seed}" if sampler else title
        for title, sampler, seed in zip(frame.title, frame.sampler, frame.seed, strict=True)
    ]
    assert dict(zip(places, frame.mlflow_run_id, strict=True)) == {
        name: run.info.run_id for name, run in runs.items() if name != "smoke"
    }


def _points(runs_dir: Path) -> list[tuple]:
    with sqlite3.connect(runs_dir / "mlflow.db") as base:
        points = base.execute("SELECT run_uuid, key, value, timestamp, step FROM metrics").fetchall()
        points += base.execute("SELECT run_uuid, key, value FROM params").fetchall()
        points += base.execute("SELECT run_uuid, name FROM runs").fetchall()
    return sorted(points, key=repr)


def test_same_command_again_adds_no_point(finished, tmp_path):
    shutil.copytree(finished.runs, tmp_path / "runs")
    arguments = [
        word.replace(f"runs_dir={finished.runs}", f"runs_dir={tmp_path / 'runs'}") for word in finished.arguments
    ]
    before = _points(tmp_path / "runs")
    # Parameters that hold the folder's name cannot be changed once logged; they go to a tag.
    assert invoke(arguments).code == 0
    assert _points(tmp_path / "runs") == before
