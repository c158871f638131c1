"""A study that is killed, again and again, ends with the same numbers to the bit as one that was not."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from harness.store import ResultsTable
from tests.kit.process_kit import start, wait_for, workers_of
from tests.kit.study_kit import command, snapshot

#: What may differ: when and how fast it ran, in which tracking run, and at which state of the code.
_FREE = ("seconds_per_seq", "time_ms", "mlflow_run_id", "git_sha")
_PATIENCE = 120.0


def _same(folder: Path, other: Path) -> None:
    """Equal rows to the bit, and equal samples, for the methods in `folder`."""
    frame, whole = (ResultsTable.read(f / "results.parquet").drop(columns=list(_FREE)) for f in (folder, other))
    part = whole[whole["method"].isin(frame["method"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, part, check_exact=True)
    assert frame["gen_ppl"].notna().all() and frame["mauve"].notna().all() and len(frame) > 2
    samples = snapshot(folder / "samples")
    assert len(samples) == len(frame) and samples.items() <= snapshot(other / "samples").items()


def test_killed_four_times_it_ends_with_the_same_numbers(finished, tmp_path):
    """With one worker cells are trained first, then the judge, then all is sampled, then scored; a kill in each."""
    rng = np.random.default_rng(2024)
    runs, cache, log = tmp_path / "runs", tmp_path / "cache", tmp_path / "log"
    arguments = command(finished.corpus, runs, cache, "train.checkpoint_seconds=0.05", "only=[bigram,mdlm,fuji,seq]")

    def some(pattern: str, of: int) -> Callable[[], bool]:
        return lambda: 0 < len(list((runs / "smoke").glob(pattern))) < of

    moments = (
        (some("weights/*/train.safetensors", of=2), 0.02),
        (lambda: any(cache.glob("judges/*.part/fit.safetensors")), 0.2),
        (some("cells/*/samples-*", of=7), 0.02),
        (some("cells/*/scores-*", of=8), 0.05),
    )
    for under_way, latest in moments:
        process = start("harness.run", arguments, log)
        wait_for(under_way, process, log, every=0.005)
        time.sleep(rng.uniform(0, latest))
        workers = workers_of(process)
        process.send_signal(signal.SIGKILL)
        process.wait(_PATIENCE)
        assert workers and not psutil.wait_procs(workers, timeout=5)[1], "a worker outlived its parent"
        assert under_way(), "what was to be interrupted was finished before the kill"

    # Two workers at last, of which one is killed: how the work is shared out must not matter either.
    process = start("harness.run", [*arguments, "compute.workers=2"], log)
    wait_for(lambda: len(workers_of(process)) == 2, process, log, every=0.005)
    time.sleep(0.5)  # it has its job by then, and takes longer than that to begin
    workers_of(process)[0].kill()
    assert process.wait(_PATIENCE) == 0, log.read_text()
    assert log.read_text().count("worker process ended with exit code -9; trying again") == 1
    _same(runs / "smoke", finished.folder)
    assert not list(runs.rglob("*.part")) and not list((runs / "smoke").rglob("train.safetensors"))


def test_interrupt_is_answered_in_one_line(finished, tmp_path):
    """Ctrl-C, twice, goes to the parent and to the workers; the exit code is that of a shell; tracking knows."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    runs.mkdir()
    shutil.copy(finished.runs / "mlflow.db", runs)
    tracked = ("tracking.enabled=true", "tracking.experiment=stopped")
    process = start("harness.run", command(finished.corpus, runs, finished.cache, "only=[mdlm]", *tracked), log)
    wait_for(lambda: any(runs.glob("smoke/weights/*/curves.jsonl")), process, log)
    workers = workers_of(process)
    for each in (*workers, psutil.Process(process.pid)) * 2:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGINT)
    assert process.wait(_PATIENCE) == 130
    with sqlite3.connect(runs / "mlflow.db") as base:
        query = "SELECT status FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = 'stopped'"
        assert {status for (status,) in base.execute(query)} == {"KILLED"}
    assert log.read_text().strip().splitlines()[-1] == "stopped; the same command continues where it was"
    assert "Traceback" not in log.read_text()
    assert not psutil.wait_procs(workers, timeout=5)[1]
