"""What tuning itself costs: seconds of a trial that does nothing, at the 300th trial of a study.

    python benchmarks/tune_overhead.py [--trials 300] [--storage postgresql://USER@HOST/DATABASE] [--no-tracking]

All that a worker does around a trial is in it: counting and claiming, the sampler (TPE, six dimensions), the storage, and
the trial's MLflow run with its params, curves, scores and state. What happens once for all trials (the table that is
written every 20 seconds, the end) is timed by itself and shown per trial. Prints the median and the mean over the last
twenty trials.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness.search.load import load_tune
from harness.search.presence import Presence
from harness.search.process import Leave, Spec
from harness.search.publish import TuneLog
from harness.search.storage import open_study, study_name
from harness.search.table import write_trials
from harness.search.trial import Pruned, TrialResult
from harness.search.worker import Worker, directions_of

__all__ = ["Nothing", "Pruned"]  # found by name, as a worker finds its runner
_LAST = 20


class Nothing:
    """Instead of training: a result with as many numbers as a real one has."""

    def __init__(self, loaded) -> None:
        self.count = len(loaded.cfg.objectives), len(loaded.cfg.constraints)

    def prepare(self, progress) -> None:
        """Nothing is needed."""

    def run(self, params, report, progress) -> TrialResult:
        """Twenty scores and twenty validations of four curves."""
        now = int(time.time() * 1000)
        curves = [
            {"step": 100 * k, "time_ms": now + k, "values": {f"train/{name}": random.random() for name in "abcd"}}
            for k in range(1, 21)
        ]
        scores = {f"column{k}@4": random.random() for k in range(20)}
        seconds = {"train": 0.0, "sample": 0.0, "score": 0.0}
        return TrialResult([random.random()] * self.count[0], [-1.0] * self.count[1], scores, seconds, True, curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--storage", default="")
    parser.add_argument("--no-tracking", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.trials, args.storage, not args.no_tracking)


def measure(folder: Path, trials: int, storage: str, tracking: bool) -> None:
    """Run `trials` empty trials and print what the last ones took."""
    arguments = [
        "study=exact", "only_tasks=[hmm]", "tune=latent", f"tune.trials={trials}", f"runs_dir={folder}/runs",
        f"tune.name=overhead-{time.time_ns()}", "compute.device=cpu", f"tracking.enabled={str(tracking).lower()}",
        "tracking.system_metrics=false", *([f"tune.storage={storage}"] if storage else []),
    ]  # fmt: skip
    loaded = load_tune(arguments, [], False)
    opened = open_study(loaded, directions_of(loaded))
    log = TuneLog(loaded, opened.study)
    run_id = log.open()
    spec = Spec(arguments, run_id=run_id or None, runner=f"{__name__}:Nothing")
    worker = Worker(loaded, opened, spec, lambda **_: None, Leave())
    took = []
    with Presence(worker.claims.workers, 0, spec.beat) as presence:
        for number in range(trials):
            began = time.perf_counter()
            worker.step(presence.name)
            took.append(time.perf_counter() - began)
            if number % 50 == 0:
                print(f"trial {number}: {took[-1]:.3f} s", file=sys.stderr)
    began = time.perf_counter()
    write_trials(loaded, opened.study)
    table = time.perf_counter() - began
    began = time.perf_counter()
    log.settle()
    log.close()
    settle = time.perf_counter() - began
    last = took[-_LAST:]
    print(
        f"{study_name(loaded)} in {'PostgreSQL' if storage else 'a journal'}, MLflow {'on' if tracking else 'off'}: "
        f"at trial {trials} {statistics.median(last):.3f} s a trial (mean {statistics.mean(last):.3f}), "
        f"over all {statistics.mean(took):.3f}; a table of all {table:.3f} s, MLflow brought in line {settle:.3f} s"
    )


if __name__ == "__main__":
    main()
