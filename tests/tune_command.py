"""`python -m tests.tune_command ...`: the command `harness.tune` on the fakes of `tests.tune_fakes`."""

from __future__ import annotations

import functools
import sys

import harness.search.engine  # noqa: F401 - before the real objective is put aside
import harness.search.load
import harness.search.process
import harness.search.results
from harness import tune
from harness.study.runner import Outcome
from harness.search.claims import all_trials, tally
from tests.tune_fakes import LOAD, RUNNER, load_fake


def finish(loaded, study, log) -> Outcome:
    """Says the count, where the real one draws figures."""
    now = tally(all_trials(study))
    return Outcome(f"complete {now.complete}, counted {now.counted}", [])


def replace() -> None:
    """Put the fakes in the place of loading, of trials, and of what comes after them."""
    harness.search.load.load_tune = load_fake
    harness.search.results.finish = finish
    harness.search.process.Spec = functools.partial(harness.search.process.Spec, load=LOAD, runner=RUNNER)


if __name__ == "__main__":
    replace()
    sys.exit(tune.main())
