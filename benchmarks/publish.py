"""What it costs to show a study: seconds of a refresh after each cell, by the number of cells.

    python benchmarks/publish.py [--cells 50 500] [--tracking]

The cells' files are made up (two sets of samples each), so that nothing is trained. A study of N cells is shown as it
grows: each cell's files appear, the publisher is told, and the whole of that and of the end is timed (seconds of
CPU, so that a busy machine tells the same). `table` is one table of all rows, whether it was due or not.
With `--tracking`, into an MLflow store in SQLite.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from harness.study.publish import Publisher
from tests.kit.publish_kit import cells_of, made_up_session, write_scores, write_training


def measure(count: int, tracking: bool) -> dict[str, float]:
    """Seconds of each phase of a study with `count` cells."""
    with tempfile.TemporaryDirectory() as folder:
        session = made_up_session(Path(folder), count, f"tracking.enabled={str(tracking).lower()}")
        cells, data = cells_of(session)
        began = time.process_time()
        with Publisher(session, cells, data, "benchmark") as publisher:
            opened = time.process_time() - began
            shown = []
            for cell in (*cells, data):
                write_training(cell)
                write_scores(session, cell)
                began = time.process_time()
                publisher.job_done(("score", cell.name), cell)
                publisher.tick()
                shown.append(time.process_time() - began)
            began = time.process_time()
            publisher.refresh()
            table = time.process_time() - began
            began = time.process_time()
            publisher.finish({})
            ended = time.process_time() - began
    return {"open": opened, "a cell": sum(shown) / count, "the slowest": max(shown), "table": table, "end": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--tracking", action="store_true")
    args = parser.parse_args()
    for count in args.cells:
        found = measure(count, args.tracking)
        print(f"{count} cells: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in found.items()), flush=True)


if __name__ == "__main__":
    main()
