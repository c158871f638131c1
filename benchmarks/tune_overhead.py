"""What a search itself costs: seconds of a trial that does nothing, at the 300th trial of a study.

    python benchmarks/tune_overhead.py [--trials 300] [--storage postgresql://USER@HOST/DATABASE] [--no-tracking]

All that the command does around a trial is in it: counting and asking, the sampler (TPE, six dimensions), the storage, the
trial's configuration, and its MLflow run with its params, scores and state. What happens once for all trials (the table that
is written every 20 seconds, the end) is timed by itself. Prints the median and the mean over the last twenty trials.
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
from harness.search.publish import SearchLog
from harness.search.queue import Queue
from harness.search.runner import Search
from harness.search.storage import open_store
from harness.search.trial import TrialResult

_LAST = 20


def nothing(objectives: int, constraints: int) -> TrialResult:
    """Instead of training: a result with as many numbers as a real one has."""
    scores = {f"column{k}@4": random.random() for k in range(20)}
    seconds = {"train": 0.0, "sample": 0.0, "score": 0.0}
    return TrialResult([random.random()] * objectives, [-1.0] * constraints, scores, seconds, True)


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
    store = open_store(loaded)
    log = SearchLog(loaded, store.study)
    log.open()
    search = Search(loaded, store, Queue(store, loaded.cfg, loaded.folder / "commands"), log)
    counts = len(loaded.cfg.objectives), len(loaded.cfg.constraints)
    took = []
    with search.queue.present():
        search.done(search.ready(1)[0], None)
        for number in range(trials):
            began = time.perf_counter()
            (task,) = search.ready(1)
            task.begin()
            task.state = "done"
            search.done(task, nothing(*counts))
            took.append(time.perf_counter() - began)
            if number % 50 == 0:
                print(f"trial {number}: {took[-1]:.3f} s", file=sys.stderr)
    table, settle = _seconds(search.write), _seconds(lambda: (log.settle(), log.tracker.close()))
    last = took[-_LAST:]
    print(
        f"{loaded.name} in {'PostgreSQL' if storage else 'a journal'}, MLflow {'on' if tracking else 'off'}: "
        f"at trial {trials} {statistics.median(last):.3f} s a trial (mean {statistics.mean(last):.3f}), "
        f"over all {statistics.mean(took):.3f}; a table of all {table:.3f} s, MLflow brought in line {settle:.3f} s"
    )


def _seconds(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
