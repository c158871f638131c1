"""Workers and commands that are killed at random moments: the wanted number of real trials, none twice, no result lost."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from harness.search.load import load_tune
from harness.search.storage import open_store
from harness.search.trials import all_trials, status
from tests.kit.process_kit import start, wait_for, workers_of
from tests.kit.tune_kit import TrialState, add, check_nothing_lost, make_study
from tests.kit.tune_server import postgres
from tests.kit.tune_toys import arguments, write_files

_WANTED = 20
#: How many results are there when somebody is killed: a worker, or the command with all of its workers.
_KILLS = [(0, "worker"), (3, "worker"), (6, "command"), (9, "worker"), (12, "worker")]


def _search(root: Path, *more: str) -> list[str]:
    return [
        *arguments(root, "tune=toy", f"tune.trials={_WANTED}", "tune.retries=30", "tune.confirm.top=0"),
        # Fewer dimensions are drawn sooner; one that is not always there stays.
        *("compute.device=cpu", "tune.sampler=random", "~tune.space.corners", "~tune.space.rounds", *more),
    ]


def _kill_at_random(root: Path, seed: int, *more: str) -> list:
    """Run the search to its end on a fresh storage while it is killed; all trials."""
    rng, log = np.random.default_rng(seed), root / "log"
    folders = ["--config-dir", str(write_files(root))]
    results = root / "runs" / "tunable" / "tune" / "toy" / "trials"
    process = start("harness.tune", [*folders, *_search(root, *more), "tune.workers=8"], log)
    for least, whom in _KILLS:
        wait_for(lambda least=least: len(list(results.glob("*/cells/*/scores-*"))) >= 2 * least, process, log)
        workers = wait_for(functools.partial(workers_of, process), process, log)
        if whom == "worker":
            rng.choice(workers).kill()  # whatever it does: it may not have begun
            continue
        process.kill()
        process.wait()
        assert not psutil.wait_procs(workers, timeout=60)[1], "a killed command takes its workers along"
        # One now: to start them is most of what this test takes.
        process = start("harness.tune", [*folders, *_search(root, *more), "tune.workers=1"], log)
    assert process.wait(120) == 0, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and f"{_WANTED}/{_WANTED} trials" in said
    store = open_store(load_tune(_search(root, *more), [root / "configs"], check=False))
    return all_trials(store.study)


def _check(root: Path, trials: list) -> None:
    check_nothing_lost(trials, _WANTED)
    assert sum(status(t) == "lost" for t in trials) >= 1, "nobody was hit while at work"
    frame = pd.read_parquet(root / "runs" / "tunable" / "tune" / "toy" / "trials.parquet")
    assert (frame["state"] == "complete").sum() == _WANTED and frame["value.quality"].notna().sum() == _WANTED


@pytest.mark.timeout(280)
def test_eight_workers_and_the_command_killed_on_a_fresh_journal(tmp_path):
    _check(tmp_path, _kill_at_random(tmp_path, 0))
    folder = tmp_path / "runs" / "tunable" / "tune" / "toy"
    assert all(isinstance(json.loads(line), dict) for line in (folder / "journal.log").read_text().splitlines())
    assert not list((folder / "commands").glob("*.lock")), "of a dead command nothing stays"


@pytest.mark.timeout(280)
def test_eight_workers_and_the_command_killed_on_a_fresh_database(tmp_path):
    with postgres() as server:
        _check(tmp_path, _kill_at_random(tmp_path, 1, f"tune.storage={server.url()}"))
        for path in (tmp_path / "runs").rglob("*"):
            assert not path.is_file() or server.password.encode() not in path.read_bytes(), "the password is in a file"


def test_the_check_finds_what_is_lost_and_what_is_doubled():
    study = make_study()
    for slots in range(1, 5):
        add(study, {"methods.seq.slots": slots}, [1.0])
    trials = study.trials
    check_nothing_lost(trials, 4)
    for wrong in (trials[1:], [*trials, trials[0]]):
        with pytest.raises(AssertionError):
            check_nothing_lost(wrong, 4)
    add(study, {"methods.seq.slots": 7}, state=TrialState.FAIL)
    with pytest.raises(AssertionError, match="not begun again once"):
        check_nothing_lost(study.trials, 4)
