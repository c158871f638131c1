"""A study with tasks: each is the study that it would be alone, and what they share is written as they finish."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.jobs.locks import folder_lock
from harness.store import ResultsTable
from harness.tracking.mlflow_client import connect
from harness.tracking.uri import default_store
from tests.kit.study_kit import Said, invoke, snapshot, use_threads
from tests.kit.suite_kit import FLOOR, suite_arguments

pytestmark = pytest.mark.usefixtures("threads")


@dataclass(frozen=True)
class Done:
    """A suite that ran to its end, with tracking; nothing in it may be changed."""

    root: Path
    said: Said

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "toys"

    def copy(self, root: Path) -> Path:
        """A copy of its runs below `root`; returns the study's folder."""
        shutil.copytree(self.folder, root / "runs" / "toys")
        return root / "runs" / "toys"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    root = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        return Done(
            root, invoke(suite_arguments(root, FLOOR, "tracking.enabled=true", "tracking.system_metrics=false"))
        )


@pytest.fixture(autouse=True)
def _quick_figures(done, monkeypatch) -> None:
    """The figures of `done` are real; those of later runs are blank, which saves most of a run's time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, buffer, **_: buffer.write(b"blank"))


def _frame(folder: Path) -> pd.DataFrame:
    return ResultsTable.read(folder / "results.parquet")


def _models(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("*/weights/*/model.safetensors")}


_TIMES = ["study", "seconds_per_seq", "time_ms", "mlflow_run_id", "git_sha"]


# ---- running ------------------------------------------------------------------------------------------------------------
def test_each_task_is_the_study_that_it_would_be_alone(done, tmp_path):
    assert done.said.code == 0, done.said.err
    arguments = suite_arguments(tmp_path, FLOOR, "data.noise=0.5", "scale.steps=20")
    alone = invoke([a if a != "study=toys" else "study=toy" for a in arguments])
    assert alone.code == 0, alone.err
    single, part = _frame(tmp_path / "runs" / "toy"), _frame(done.folder / "noisy")
    pd.testing.assert_frame_equal(part.drop(columns=_TIMES), single.drop(columns=_TIMES), check_exact=True)
    files = {n for n in snapshot(tmp_path / "runs" / "toy") if not n.startswith(("cells/", "weights/"))}
    assert {n for n in snapshot(done.folder / "noisy") if not n.startswith(("cells/", "weights/"))} == files
    assert {p.name for p in (tmp_path / "runs" / "toy" / "cells").iterdir()} == {
        p.name for p in (done.folder / "noisy" / "cells").iterdir()
    }, "trained models have the same identity"


def test_what_they_share_holds_the_rows_of_both(done):
    both = _frame(done.folder)
    assert set(both["study"]) == {"toys/short", "toys/noisy"}
    for task in ("short", "noisy"):
        own = _frame(done.folder / task)
        rows = both[both["study"] == f"toys/{task}"].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows[own.columns], own, check_exact=True)
    report = (done.folder / "report.md").read_text()
    assert report.startswith("# Study toys\n\nhow far\n")
    assert "| short | alternating | 5 of 5 | [short/report.md](short/report.md) |" in report
    assert report.index("## short") < report.index("## noisy"), "the order of the study, not of the alphabet"
    for name in ("gen_ppl", "repeats"):
        assert f"(figures/{name}.png)" in report and (done.folder / "figures" / f"{name}.png").stat().st_size > 10_000
    assert {p.name for p in (done.folder / "figures").iterdir()} == {"gen_ppl.png", "repeats.png"}
    assert f"report   {done.folder / 'report.html'}" in done.said.out and "Positions" in done.said.out


def test_floor_runs_once_at_every_budget(done):
    frame = _frame(done.folder / "short")
    rows = frame[frame["role"] == "floor"]
    assert list(rows["nfe"]) == [2, 4] and list(rows["seed"]) == [0, 0]


def test_tracking_has_a_run_for_the_whole_beside_those_of_the_tasks(done):
    client = connect(default_store(done.root / "runs"))
    experiment = client.get_experiment_by_name("toys")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    cells = {f"{t}: {m} · seed 0" for t in ("short", "noisy") for m in ("Positions", "Perfect")}
    cells |= {f"{t}: Held-out data" for t in ("short", "noisy")}
    assert set(runs) == {"toys", "toys/short", "toys/noisy", *cells}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    whole = runs["toys"].info.run_id
    assert {Path(f.path).name for f in client.list_artifacts(whole, "figures")} == {"gen_ppl.png", "repeats.png"}
    assert {f.path for f in client.list_artifacts(whole)} >= {"report.md", "results.parquet"}


# ---- going on -----------------------------------------------------------------------------------------------------------
def test_same_command_goes_on_where_a_task_is_missing(done, tmp_path):
    folder = done.copy(tmp_path)
    shutil.rmtree(folder / "noisy")
    models = _models(folder)
    said = invoke(suite_arguments(tmp_path, FLOOR))
    assert said.code == 0, said.err
    assert models.items() <= _models(folder).items() and len(_models(folder)) == 2
    pd.testing.assert_frame_equal(
        _frame(folder).drop(columns=_TIMES), _frame(done.folder).drop(columns=_TIMES), check_exact=True
    )


def test_stop_between_tasks_leaves_the_report_of_those_that_ended(tmp_path, monkeypatch):
    from harness.study import suite

    ran = []

    def stopped(session, command):
        if ran:
            raise KeyboardInterrupt
        ran.append(session.cfg.study.name)
        return run_study(session, command)

    run_study = suite.run_study
    monkeypatch.setattr(suite, "run_study", stopped)
    said = invoke(suite_arguments(tmp_path))
    assert said.code == 130 and ran == ["toys/short"]
    report = (tmp_path / "runs" / "toys" / "report.md").read_text()
    assert "| noisy | — | none under this configuration | — |" in report and "## short" in report
    assert set(_frame(tmp_path / "runs" / "toys")["study"]) == {"toys/short"}


def test_tasks_one_by_one_come_to_the_same_report(done, tmp_path):
    folder = done.copy(tmp_path)
    (folder / "report.md").unlink()
    assert invoke(suite_arguments(tmp_path, FLOOR, "only_tasks=[noisy]")).code == 0
    report = (folder / "report.md").read_text()
    assert report.partition("- Command")[0] == (done.folder / "report.md").read_text().partition("- Command")[0]


def test_results_of_another_configuration_stay_out(done, tmp_path):
    """And the floor is not run at other temperatures, nor with more seeds."""
    folder = done.copy(tmp_path)
    other = ["study.samples=24", "study.temperatures=[1.0,0.5]", "study.seeds=[0,1]"]
    said = invoke(suite_arguments(tmp_path, FLOOR, "only_tasks=[noisy]", *other))
    assert said.code == 0 and "task short" not in said.err
    frame = _frame(folder)
    assert set(frame["study"]) == {"toys/noisy"} and set(frame["n"]) == {24}
    assert "| short | — | none under this configuration | — |" in (folder / "report.md").read_text()
    assert set(_frame(folder / "short")["n"]) == {16}, "which is left as it was"
    floor, method = frame[frame["role"] == "floor"], frame[frame["role"] == "method"]
    assert list(floor["nfe"]) == [2, 4] and set(floor["temperature"]) == {1.0} and len(method) == 2 * 2 * 2


def test_a_cell_that_fails_in_one_task_is_named_with_it(tmp_path):
    bad = ["+method@methods.poisoned=positions", "methods.poisoned.poison_from=22"]
    said = invoke(suite_arguments(tmp_path, *bad))
    assert said.code == 1, said.err
    why = "the loss is nan at step 23; a smaller scale.lr (now 0.1) may help"
    assert [line for line in said.err.splitlines() if line.startswith("failed:")] == [
        f"failed: short/poisoned/seed0: {why}"
    ], "the other task has 20 steps"
    report = (tmp_path / "runs" / "toys" / "report.md").read_text()
    assert f"- short: poisoned/seed0 failed: {why}" in report
    assert "| short | alternating | 3 of 5 |" in report and "| noisy | alternating | 5 of 5 |" in report


# ---- what is asked for --------------------------------------------------------------------------------------------------
def test_configuration_shows_each_task_and_the_command_line_wins(tmp_path):
    said = invoke([*suite_arguments(tmp_path, "scale.steps=7", "study.name=mine"), "--cfg", "job"])
    assert said.code == 0
    short, noisy = yaml.safe_load_all(said.out)
    assert (short["study"]["name"], noisy["study"]["name"]) == ("mine/short", "mine/noisy")
    assert (short["scale"]["length"], noisy["scale"]["length"]) == (9, 12)
    assert (short["data"]["noise"], noisy["data"]["noise"]) == (0.2, 0.5)
    assert short["scale"]["steps"] == noisy["scale"]["steps"] == 7, "the user's value and not the task's"
    assert short["tracking"]["experiment"] == "mine" and "tasks" not in short["study"]
    assert not (tmp_path / "runs").exists()
    (noisy,) = yaml.safe_load_all(invoke([*suite_arguments(tmp_path, "only_tasks=[noisy]"), "--cfg", "job"]).out)
    assert noisy["study"]["name"] == "toys/noisy" and noisy["scale"]["steps"] == 20


def test_tasks_can_be_changed_and_added_on_the_command_line(tmp_path):
    more = ["+study.tasks.wide=['scale.width=16']", "study.tasks.noisy=['data.noise=0.1']", "~study.tasks.short"]
    trees = yaml.safe_load_all(invoke([*suite_arguments(tmp_path, *more), "--cfg", "job"]).out)
    assert {t["study"]["name"]: (t["scale"]["width"], t["data"]["noise"]) for t in trees} == {
        "toys/noisy": (8, 0.1),
        "toys/wide": (16, 0.2),
    }


def test_a_key_that_only_one_task_has_is_set_where_that_task_runs_alone(tmp_path):
    arguments = suite_arguments(tmp_path, "study.tasks.short=['data=text','data.path=x']", "data.noise=0.3")
    said = invoke([*arguments, "--cfg", "job"])
    assert said.code == 2 and said.error.startswith("error: task short: unknown key 'data.noise'")
    said = invoke([*arguments, "only_tasks=[noisy]", "--cfg", "job"])
    assert said.code == 0 and yaml.safe_load(said.out)["data"]["noise"] == 0.3


def test_other_data_than_the_task_s_are_refused_in_one_line(tmp_path):
    arguments = suite_arguments(tmp_path, "study.tasks.short=['data=alternating']")
    said = invoke([*arguments, "data=docstrings", "only_tasks=[short]", "--cfg", "job"])
    assert said.code == 2 and said.out == ""
    assert said.error == (
        "error: task short: data=docstrings: the task has data=alternating; choose another with only_tasks, or leave it out"
    )
    assert invoke([*arguments, "data=alternating", "only_tasks=[short]", "--cfg", "job"]).code == 0


def test_plan_shows_every_task_and_the_total(tmp_path):
    said = invoke(suite_arguments(tmp_path, FLOOR, "plan=true"))
    assert said.code == 0, said.err
    assert said.out.index("study toys/short: alternating") < said.out.index("study toys/noisy: alternating")
    assert "all 2 tasks: 4 cells, 2 of them trained (50 steps), 8 sets of samples" in said.out
    assert not (tmp_path / "runs").exists()


REFUSED = [
    (["only_tasks=[nosy]"], "only_tasks=nosy: is no task of this study; did you mean 'noisy'?"),
    (["only_tasks=[short,short]"], "only_tasks=['short', 'short']: a task is named twice"),
    (["study.task.noisy=[]"], "unknown key 'study.task.noisy'; did you mean 'study.tasks.noisy'?"),
    (["+study.tasks.figures=[]"], "study.tasks=figures: names a folder of the study"),
    (["study.tasks.noisy=['scale.lenght=3']"], "task noisy: unknown key 'scale.lenght'; did you mean 'scale.length'?"),
    (
        ["study.tasks.noisy=['data=alternatin']"],
        "task noisy: data=alternatin: no such data; did you mean 'alternating'?",
    ),
    (["study.tasks.noisy=['scale.steps=0']"], "task noisy: scale.steps=0: must be 1 or more"),
    (["study.tasks.noisy=['runs_dir=x']"], "task noisy: runs_dir=x: belongs to the study as a whole"),
    (["study.tasks.noisy=[oh]"], "task noisy: cannot read the argument 'oh'; write key=value"),
    (["study.tasks.noisy=['data.rows=24']"], "task noisy: study.samples=16: the reference and the held-out row need"),
    (["study.unmet=skp"], "study.unmet=skp: is unknown; did you mean 'skip'?"),
]


@pytest.mark.parametrize(("more", "fragment"), REFUSED)
def test_everything_is_refused_before_anything_is_done(tmp_path, more, fragment):
    said = invoke(suite_arguments(tmp_path, *more))
    assert said.code == 2 and fragment in said.error, said.err
    assert said.err.count("error:") == 1 and "Traceback" not in said.err
    assert not (tmp_path / "runs").exists()


def test_tasks_are_asked_of_a_study_that_has_none(tmp_path):
    arguments = [a if a != "study=toys" else "study=toy" for a in suite_arguments(tmp_path, "only_tasks=[short]")]
    said = invoke(arguments)
    assert said.code == 2 and "only_tasks=short: this study has no tasks" in said.error


def test_a_task_that_another_command_runs_is_refused(done, tmp_path):
    folder = done.copy(tmp_path)
    before = snapshot(folder)
    with folder_lock(folder / "short"):
        said = invoke(suite_arguments(tmp_path, FLOOR, "tracking.enabled=false"))
    assert said.code == 2 and f"task short: {folder / 'short'} is in use by process" in said.error
    assert {n: h for n, h in snapshot(folder).items() if n != "short/.lock"} == {
        n: h for n, h in before.items() if n != "short/.lock"
    }
