"""The command `harness.tune`: what it prints, how it is stopped and goes on, and a real search from end to end."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
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
from tests.kit.process_kit import start, wait_for, workers_of
from tests.kit.study_kit import invoke
from tests.kit.tune_kit import check_nothing_lost
from tests.kit.tune_toys import arguments, write_files

_WANTED = 4


def _search(root: Path) -> list[str]:
    """A search of trials of a second or two each."""
    own = ("tune=toy", f"tune.trials={_WANTED}", "tune.workers=1", "tune.confirm.top=0", "tune.sampler=random")
    less = [f"~tune.space.{name}" for name in ("corners", "rounds")]  # what is drawn in the end takes longest
    return [
        *arguments(root, *own, *less),
        "compute.device=cpu",
        "scale.steps=700",
        "train.checkpoint_seconds=0.1",
        "train.checkpoint_share=1",
    ]


def _trials(root: Path) -> list[optuna.trial.FrozenTrial]:
    return all_trials(open_store(load_tune(_search(root), [root / "configs"], check=False)).study)


def _command(root: Path, log: Path) -> subprocess.Popen:
    return start("harness.tune", ["--config-dir", str(root / "configs"), *_search(root)], log)


def _told(root: Path) -> int:
    """How many trials are complete."""
    journal = root / "runs" / "tunable" / "tune" / "toy" / "journal.log"
    return journal.read_text().count(f'"state":{int(TrialState.COMPLETE)}') if journal.exists() else 0


def _at_work(root: Path) -> list[Path]:
    """Trials that are being trained."""
    return list((root / "runs" / "tunable" / "weights").glob("*/train.safetensors"))


def _stopped(process: subprocess.Popen, log: Path, how: str) -> None:
    """Stop a command as a terminal does, whose Ctrl-C goes to its workers too, or as a scheduler; all of it is gone then."""
    workers = wait_for(functools.partial(workers_of, process), process, log)
    if how == "terminal":
        for each in (psutil.Process(process.pid), *workers):
            each.send_signal(signal.SIGINT)
    else:
        process.terminate()
    assert process.wait(60) == (130 if how == "terminal" else 143)
    assert len(workers) == 1 and not psutil.wait_procs(workers, timeout=60)[1]
    said = log.read_text()
    assert said.strip().splitlines()[-1].startswith("stopped; the same command continues") and "Traceback" not in said


@pytest.mark.timeout(280)
def test_a_command_that_is_stopped_puts_trials_back_and_the_same_command_continues(tmp_path):
    write_files(tmp_path)
    log, folder = tmp_path / "log", tmp_path / "runs" / "tunable" / "tune" / "toy"
    counted, stopped = 0, 0
    for how in ("terminal", "scheduler"):
        process = _command(tmp_path, log)
        wait_for(lambda counted=counted: _told(tmp_path) > counted and _at_work(tmp_path), process, log)
        _stopped(process, log, how)
        assert f"{counted} of them there" in log.read_text() or not counted
        trials = _trials(tmp_path)
        put_back, before = [t for t in trials if t.user_attrs.get(STOPPED)], tally(trials)
        assert len(put_back) > stopped and counted < before["counted"] < _WANTED and not before["running"]
        assert not list((folder / "commands").iterdir()), "who leaves in good order leaves nothing behind"
        assert list(pd.read_parquet(folder / "trials.parquet")["number"]) == [t.number for t in trials]
        counted, stopped = before["counted"], len(put_back)

    assert _command(tmp_path, log).wait(200) == 0, log.read_text()
    trials = _trials(tmp_path)
    check_nothing_lost(trials, _WANTED)
    # One that was being asked for may not have had all of its values.
    done = [t.params.items() for t in trials if status(t) == "complete"]
    assert all(any(t.params.items() <= params for params in done) for t in put_back)
    assert f"{counted} of them there" in log.read_text()
    _check_log(log.read_text(), folder, trials)


def _check_log(said: str, folder: Path, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Not on a terminal: a line at the beginning, at the end and now and then; nothing of Optuna's own."""
    assert said.splitlines()[0] == f"tune tunable/toy: {_WANTED} trials in {folder}"
    last = next(line for line in reversed(said.splitlines()) if line.startswith("["))
    assert re.match(rf"\[\d+:\d\d, ETA \S+, {_WANTED}/{_WANTED} trials\] best ", last)
    best = min((t for t in trials if status(t) == "complete"), key=lambda t: t.value)
    assert last.endswith(f"best {best.value:.4g} (trial {best.number})")
    assert "Warning" not in said and "[I 20" not in said


@pytest.mark.timeout(280)
def test_a_search_from_end_to_end(tmp_path):
    """Three trials of eight steps, tracked; then the best configuration as an ordinary study."""
    log = tmp_path / "log"
    study = [
        "study=exact", "only_tasks=[templates]", f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}",
        "scale.steps=8", "scale.batch=16", "study.samples=24", "study.bound_sequences=24", "train.validations=1",
        "train.valid_sequences=24", "compute.device=cpu", "compute.workers=1", "tracking.system_metrics=false",
    ]  # fmt: skip
    tune = ["tune=latent", "tune.trials=3", "tune.workers=1", "tune.samples=24", "tune.confirm.top=0", "tune.steps=1"]
    # Eight steps meet no constraint; two dimensions are enough, and are drawn in a second.
    less = [f"~tune.constraints.{name}" for name in ("entropy", "spread")]
    less += [f"~tune.space.{name}" for name in ("encoder_noise", "latent_shift", "decoder_noise", "schedule")]
    process = start("harness.tune", [*study, *tune, *less], log)
    assert process.wait(250) == 0, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and "3/3 trials" in said and "Best: trial" in said
    folder = tmp_path / "runs" / "exact" / "templates" / "tune" / "latent"
    frame = pd.read_parquet(folder / "trials.parquet")
    assert list(frame["state"]) == ["complete"] * 3 and frame["run_id"].nunique() == 3 and frame["trained"].all()
    assert len(list((folder.parent.parent / "weights").glob("*/model.safetensors"))) == 3
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["trial"] == int(frame.loc[frame["value.quality"].idxmin(), "number"])
    assert (folder / "report.md").exists() and list((folder / "figures").glob("*.png"))
    shown = invoke([*study, f"+best={folder / 'best.yaml'}", "--cfg", "job"]).out
    slots = next(o for o in best["overrides"] if ".slots=" in o)
    method, value = slots.split(".")[1], int(slots.split("=")[1])
    assert yaml.safe_load(shown)["methods"][method]["slots"] == value
