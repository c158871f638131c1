"""The command `harness.tune`: what it prints, how it is stopped and goes on, and a real search from end to end."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import yaml
from optuna.trial import TrialState

from harness.search.load import load_tune
from harness.search.storage import open_store
from harness.search.trials import STOPPED, all_trials, status, tally
from tests.kit.tune_kit import check_nothing_lost, start, wait_for, workers_of
from tests.kit.tune_toys import arguments, write_files

_ROOT = Path(__file__).parents[2]


def _search(root: Path, *more: str) -> list[str]:
    """A search of trials of a second or two each."""
    own = ("tune=toy", "tune.trials=6", "tune.workers=2", "tune.confirm.top=0", "tune.sampler=random")
    return [*arguments(root, *own), "compute.device=cpu", "scale.steps=1500", "train.checkpoint_seconds=0.2", *more]


def _trials(root: Path) -> list[optuna.trial.FrozenTrial]:
    return all_trials(open_store(load_tune(_search(root), [root / "configs"], check=False)).study)


def _command(root: Path, log: Path) -> subprocess.Popen:
    return start(["--config-dir", str(root / "configs"), *_search(root)], log)


def _told(root: Path) -> bool:
    """Whether a trial is complete."""
    journal = root / "runs" / "tunable" / "tune" / "toy" / "journal.log"
    return journal.exists() and f'"state":{int(TrialState.COMPLETE)}' in journal.read_text()


def _at_work(root: Path) -> list[Path]:
    """Trials that are being trained."""
    return list((root / "runs" / "tunable" / "weights").glob("*/train.safetensors"))


@pytest.mark.timeout(280)
@pytest.mark.parametrize("how", ["terminal", "scheduler"])
def test_a_command_that_is_stopped_puts_trials_back_and_the_same_command_continues(tmp_path, how):
    write_files(tmp_path)
    log, folder = tmp_path / "log", tmp_path / "runs" / "tunable" / "tune" / "toy"
    process = _command(tmp_path, log)
    wait_for(lambda: _told(tmp_path) and _at_work(tmp_path), process, log)
    workers = wait_for(functools.partial(workers_of, process), process, log)
    if how == "terminal":
        for each in (psutil.Process(process.pid), *workers):
            each.send_signal(signal.SIGINT)
    else:
        process.terminate()
    assert process.wait(60) == (130 if how == "terminal" else 143)
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=60)[1]
    said = log.read_text()
    assert said.strip().splitlines()[-1].startswith("stopped; the same command continues") and "Traceback" not in said
    trials = _trials(tmp_path)
    stopped, before = [t for t in trials if t.user_attrs.get(STOPPED)], tally(trials)
    assert stopped and 0 < before.counted < 6 and before.running == 0
    assert not list((folder / "commands").iterdir()), "who leaves in good order leaves nothing behind"
    assert list(pd.read_parquet(folder / "trials.parquet")["number"]) == [t.number for t in trials]

    assert _command(tmp_path, log).wait(200) == 0, log.read_text()
    trials = _trials(tmp_path)
    check_nothing_lost(trials, 6)
    # One that was being asked for may not have had all of its values.
    done = [t.params.items() for t in trials if status(t) == "complete"]
    assert all(any(t.params.items() <= params for params in done) for t in stopped)
    assert f"{before.counted} of them there" in log.read_text()
    _check_log(log.read_text(), folder, trials)


def _check_log(said: str, folder: Path, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Not on a terminal: a line at the beginning, at the end and now and then; nothing of Optuna's own."""
    assert said.splitlines()[0] == f"tune tunable/toy: 6 trials in {folder}"
    last = next(line for line in reversed(said.splitlines()) if line.startswith("["))
    assert re.match(r"\[\d+:\d\d, ETA \S+, 6/6 trials\] best ", last)
    best = min((t for t in trials if status(t) == "complete"), key=lambda t: t.value)
    assert last.endswith(f"best {best.value:.4g} (trial {best.number})")
    assert "Warning" not in said and "[I 20" not in said
    kept = json.loads((folder / "tune.json").read_text())
    assert kept["study"] == "tunable/toy" and "storage" not in kept["tune"]


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
    process = start([*study, *tune, "~tune.constraints.entropy", "~tune.constraints.spread"], log)
    assert process.wait(250) == 0, log.read_text()
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
