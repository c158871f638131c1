"""Studies that are killed at random moments, on fresh stores, and must end as the one that nobody touched.

    python -m benchmarks.kills [--runs 20] [--kills 2] [--seed 0] [--folder DIR]

Each run begins in an empty folder, with tracking, and two workers. Up to `--kills` times SIGKILL goes to the command's whole
group, to the command alone (whose workers must end by themselves), or to one worker, at a moment that is uniform over the time
that is left of an untouched run; the same command is then given again until it ends. Compared to the bit: the table, samples
and weights, times and provenance aside, and every number in MLflow but speeds. Prints a row for each run; exit code 1 where one
differs, fails, leaves a process or a half-written file behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil

from tests.kit.process_kit import ROOT, workers_of
from tests.kit.study_kit import command, write_corpus
from tests.same_results import different_samples, different_scores, different_weights

_TARGETS = ("group", "parent", "worker")
_TINY = (
    "only=[bigram,mdlm,seq]", "scale.steps=30", "judge.steps=30", "train.checkpoint_seconds=0.1", "study.nfe=[2]",
    "~metrics.mauve", "compute.workers=2", "tracking.enabled=true",
)  # fmt: skip
_PATIENCE = 300.0


def start(folder: Path, corpus: Path) -> subprocess.Popen:
    """The command, in a group of its own; what it says is added to `log`."""
    words = command(corpus, folder / "runs", folder / "cache", *_TINY)
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.run", *words],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def kill(process: subprocess.Popen, whom: str, rng: np.random.Generator) -> str:
    """Kill, and see that nothing outlives it; what was hit."""
    workers = workers_of(process)
    if whom == "worker" and workers:
        with suppress(psutil.NoSuchProcess):
            workers[rng.integers(len(workers))].kill()
        return whom
    if whom == "group":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    left = psutil.wait_procs(workers, timeout=10)[1]
    assert not left, f"{len(left)} workers outlived the kill of {whom}"
    return "group" if whom == "group" else "parent"


def killed(folder: Path, corpus: Path, kills: int, whole: float, rng: np.random.Generator) -> tuple[list[str], int]:
    """Run the study to its end with `kills` kills; what was hit and when, and the number of commands."""
    hit, commands, process, left = [], 1, start(folder, corpus), whole
    for _ in range(kills):
        moment = rng.uniform(0, left)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is not None:
            break
        what = kill(process, str(rng.choice(_TARGETS)), rng)
        hit.append(f"{what} at {moment:.0f} s")
        left = max(1.0, left - moment) if what == "worker" else whole
        if what != "worker":
            commands, process = commands + 1, start(folder, corpus)
    code = process.wait(_PATIENCE)
    assert code == 0, f"exit code {code}: {(folder / 'log').read_text()[-500:]}"
    return hit, commands


def tracked(folder: Path) -> tuple[set[tuple], set[str]]:
    """All numbers in MLflow but speeds, by run, and how runs ended."""
    with closing(sqlite3.connect(folder / "runs" / "mlflow.db")) as base:
        rows = base.execute("SELECT runs.name, key, step, value FROM metrics JOIN runs USING (run_uuid)").fetchall()
        ended = {status for (status,) in base.execute("SELECT status FROM runs")}
    return {row for row in rows if not any(word in row[1] for word in ("second", "time", "system/"))}, ended


def differences(whole: Path, folder: Path) -> list[str]:
    """What is not as in the untouched run, in lines."""
    old, new = whole / "runs" / "smoke", folder / "runs" / "smoke"
    found = [line for differ in (different_scores, different_samples, different_weights) for line in differ(old, new)]
    (numbers, _), (others, ended) = tracked(whole), tracked(folder)
    found += [f"MLflow: {len(numbers - others)} numbers are lost, {len(others - numbers)} are new"] * (
        numbers != others
    )
    found += [f"MLflow: runs are {', '.join(sorted(ended))}"] * (ended != {"FINISHED"})
    return found + [f"left behind: {path.name}" for path in folder.rglob("*.part")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    root = args.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    corpus, rng, bad = write_corpus(root / "words.txt", 600), np.random.default_rng(args.seed), 0
    (root / "whole").mkdir()
    began = time.monotonic()
    assert start(root / "whole", corpus).wait(_PATIENCE) == 0, (root / "whole" / "log").read_text()
    whole = time.monotonic() - began
    print(f"untouched: {whole:.0f} s\n{'run':>3}  {'commands':>8}  {'seconds':>7}  {'result':<9}  killed", flush=True)
    for run in range(args.runs):
        folder = root / f"run{run:02d}"
        folder.mkdir()
        began, kills = time.monotonic(), int(rng.integers(1, args.kills + 1))
        try:
            hit, commands = killed(folder, corpus, kills, whole, rng)
            found = differences(root / "whole", folder)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            hit, commands, found = [], 0, [str(error)]
        bad += bool(found)
        result = "differs" if found else "identical"
        print(f"{run:>3}  {commands:>8}  {time.monotonic() - began:>7.0f}  {result:<9}  {', '.join(hit)}", flush=True)
        print("".join(f"     {line}\n" for line in found), end="", flush=True)
    print(f"{args.runs - bad} of {args.runs} identical")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
