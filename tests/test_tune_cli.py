"""The command `harness.tune`: what it prints, how it is stopped and goes on, and a real search from end to end."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import yaml
from harness.search.claims import STOPPED, WORKER, all_trials, status, tally
from harness.search.crew import Crew
from harness.search.display import Display, best_so_far, front
from harness.search.process import Spec
from optuna.study import StudyDirection
from optuna.trial import TrialState

from harness.search.storage import open_study
from tests.tune_fakes import LOAD, RUNNER, load_fake

_ROOT = Path(__file__).parent.parent
_MIN = StudyDirection.MINIMIZE


def _start(module: str, arguments: list[str], log: Path) -> subprocess.Popen:
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
            stdout=out,
            stderr=out,
            # A shell's background job ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def _wait_for(happened, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 90
    while not happened():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.02)


def _trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return all_trials(open_study(load_fake([f"folder={folder}"], []), ["minimize"]).study)


def _counted(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


# ---- stopping and going on --------------------------------------------------------------------------------------------
def test_ctrl_c_puts_trials_back_and_the_same_command_continues(tmp_path):
    folder, log = tmp_path / "tune", tmp_path / "log"
    arguments = [f"folder={folder}", "trials=14", "workers=2", "seconds=0.6"]
    process = _start("tests.tune_command", arguments, log)
    _wait_for(lambda: _counted(folder) >= 2, process, log)
    children = psutil.Process(process.pid).children()
    for each in (psutil.Process(process.pid), *children):  # as a terminal does
        each.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert len(children) == 2 and not psutil.wait_procs(children, timeout=5)[1]
    said = log.read_text()
    assert (
        said.strip().splitlines()[-1] == "stopped; the same command continues where it was" and "Traceback" not in said
    )
    trials = _trials(folder)
    stopped = [t for t in trials if t.user_attrs.get(STOPPED)]
    before = tally(trials)
    assert stopped and 0 < before.counted < 14 and before.running == 0
    assert not list((folder / "workers").iterdir()), "workers that leave in good order leave nothing behind"

    process = _start("tests.tune_command", arguments, log)
    assert process.wait(60) == 0, log.read_text()
    trials = _trials(folder)
    assert tally(trials).counted == 14
    done = [t.params["x"] for t in trials if status(t) in ("complete", "pruned", "failed")]
    assert len(set(done)) == 14 and {t.params["x"] for t in stopped} <= set(done)
    assert f"{before.counted} of them there" in log.read_text()


def test_a_parent_that_is_killed_takes_its_workers_along(tmp_path):
    folder, log = tmp_path / "tune", tmp_path / "log"
    arguments = [f"folder={folder}", "trials=8", "workers=2", "seconds=0.4"]
    process = _start("tests.tune_command", arguments, log)
    _wait_for(lambda: _counted(folder) >= 1, process, log)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert children and not psutil.wait_procs(children, timeout=5)[1]
    assert _start("tests.tune_command", arguments, log).wait(60) == 0, log.read_text()
    assert tally(_trials(folder)).counted == 8


def test_what_is_shown_in_a_log(tmp_path):
    """Not on a terminal: a line at the beginning, at the end and now and then; nothing of Optuna's own."""
    folder, log = tmp_path / "tune", tmp_path / "log"
    assert _start("tests.tune_command", [f"folder={folder}", "trials=12", "workers=1", "seconds=0"], log).wait(60) == 0
    lines = log.read_text().splitlines()
    assert lines[0] == f"tune fake-study/fake: 12 trials in {folder}"
    last = next(line for line in reversed(lines) if line.startswith("["))
    now = tally(_trials(folder))
    assert re.match(r"\[\d+:\d\d, ETA 0:00, 12/12 trials", last) and f"{now.failed} failed" in last
    best = min((t for t in _trials(folder) if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert last.endswith(f"best {best.value:.4g} (trial {best.number})")
    assert "Warning" not in log.read_text() and "[I 20" not in log.read_text()
    assert json.loads((folder / "tune.json").read_text())["identity"] == "0123"
    frame = pd.read_parquet(folder / "trials.parquet")
    assert len(frame) == 12 and set(frame["state"]) <= {"complete", "pruned", "failed"}


def test_a_worker_that_dies_is_said_and_replaced(tmp_path):
    folder = tmp_path / "tune"
    (folder / "workers").mkdir(parents=True)
    crew = Crew(
        Spec([f"folder={folder}", "trials=6", "seconds=0.5"], load=LOAD, runner=RUNNER), 1, None, folder / "workers"
    )
    said = []
    try:
        until = time.monotonic() + 60
        killed = False
        while crew.alive() and time.monotonic() < until:
            crew.poll(0.02, said.append)
            if not killed and crew.hands[0].trial is not None:
                crew.hands[0].process.kill()
                killed = True
    finally:
        crew.stop()
    assert [line for line in said if "died" in line] == ["worker 0 died (SIGKILL); trial 0 is begun again"]
    trials = _trials(folder)
    assert Counter(status(t) for t in trials)["lost"] == 1 and tally(trials).counted == 6
    assert len({t.user_attrs[WORKER] for t in trials}) == 2


# ---- the line of progress ---------------------------------------------------------------------------------------------
def _study(values, directions=("minimize",), constraints=None):
    study = optuna.create_study(directions=list(directions))
    for k, value in enumerate(values):
        attributes = {} if constraints is None else {"constraints": [constraints[k]]}
        study.add_trial(optuna.create_trial(values=list(value), user_attrs=attributes))
    return study


def test_the_best_is_the_best_feasible_one():
    assert best_so_far(all_trials(_study([[3.0], [1.0], [2.0]])), [_MIN]) == "best 1 (trial 1)"
    best = _study([[3.0], [1.0], [2.0]], ["maximize"])
    assert best_so_far(all_trials(best), best.directions) == "best 3 (trial 0)"
    assert best_so_far(all_trials(_study([[3.0], [1.0]], constraints=[-1.0, 0.5])), [_MIN]) == "best 3 (trial 0)"
    assert best_so_far(all_trials(_study([[3.0]], constraints=[0.5])), [_MIN]) == "none meets the constraints yet"
    assert best_so_far([], [_MIN]) == "none done yet"


def test_the_front_of_two_objectives_is_optunas(tmp_path):
    values = [[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [2.0, 4.0], [1.0, 5.0], [0.5, 0.0]]
    study = _study(values, ["minimize", "maximize"])
    assert {t.number for t in front(all_trials(study), study.directions)} == {t.number for t in study.best_trials}
    assert best_so_far(all_trials(study), study.directions) == f"{len(study.best_trials)} trials on the front"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_counts_only_trials_of_its_own_in_the_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("harness.search.display.time.monotonic", lambda: now[0])
    display = Display(10, [_MIN], io.StringIO())
    assert display.due()
    first = display.line(all_trials(_study([[1.0]] * 4)), [])
    assert first == "[0:00, ETA ..., 4/10 trials] best 1 (trial 0)"
    now[0] = 60.0
    later = display.line(all_trials(_study([[1.0]] * 7)), ["7: train 3/9"])
    assert later == "[1:00, ETA 1:00, 7/10 trials] best 1 (trial 0) | 7: train 3/9"  # three a minute, three to go


def test_on_a_terminal_one_line_is_drawn_again():
    stream = _Terminal()
    display = Display(2, [_MIN], stream)
    display.update(all_trials(_study([[1.0]])), [])
    display.say("trial 1 failed: no")
    display.update(all_trials(_study([[1.0]])), [], last=True)
    parts = stream.getvalue().split("\r")
    assert [p.strip() for p in parts if p.strip()][1] == "trial 1 failed: no"
    assert stream.getvalue().endswith("\n") and stream.getvalue().count("\n") == 2


# ---- a real one -------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(280)
def test_a_search_from_end_to_end(tmp_path):
    """Two workers, three trials of eight steps, tracked; then the best configuration as an ordinary study."""
    log = tmp_path / "log"
    study = [
        "study=exact", "only_tasks=[hmm]", f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}",
        "scale.steps=8", "scale.batch=16", "study.samples=24", "study.bound_sequences=24", "train.validations=1",
        "train.valid_sequences=24", "compute.device=cpu", "compute.workers=1", "tracking.system_metrics=false",
    ]  # fmt: skip
    tune = ["tune=latent", "tune.trials=3", "tune.workers=2", "tune.samples=24", "tune.confirm.top=0", "tune.steps=1"]
    # Eight steps meet no constraint.
    process = _start("harness.tune", [*study, *tune, "~tune.constraints.entropy", "~tune.constraints.spread"], log)
    assert process.wait(200) == 0, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and "3/3 trials" in said and "best " in said
    folder = tmp_path / "runs" / "exact" / "hmm" / "tune" / "latent"
    frame = pd.read_parquet(folder / "trials.parquet")
    assert list(frame["state"]) == ["complete"] * 3 and frame["run_id"].nunique() == 3 and frame["trained"].all()
    assert len(list((folder.parent.parent / "weights").glob("*/model.safetensors"))) == 3
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["trial"] == int(frame.loc[frame["value.quality"].idxmin(), "number"])
    assert (folder / "report.md").exists() and list((folder / "figures").glob("*.png"))
    shown = subprocess.run(
        [sys.executable, "-m", "harness.run", *study, f"+best={folder / 'best.yaml'}", "--cfg", "job"],
        cwd=_ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    slots = next(o for o in best["overrides"] if ".slots=" in o)
    method, value = slots.split(".")[1], int(slots.split("=")[1])
    assert yaml.safe_load(shown)["methods"][method]["slots"] == value
