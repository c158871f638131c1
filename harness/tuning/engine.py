"""A tuning from the command's side: opens the study, starts workers, shows progress, and hands over what was found.

Any number of such processes, on any hosts, may work on one study at the same time; one of them writes the results.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.progress import clock
from harness.provenance import cpu_count
from harness.store import write_json
from harness.study.outcome import Outcome
from harness.training.distributed import gpu_groups
from harness.tuning.claims import Tally, all_trials, tally
from harness.tuning.crew import Crew
from harness.tuning.display import Display
from harness.tuning.presence import forget_dead
from harness.tuning.process import Spec
from harness.tuning.storage import GRACE, Opened, open_study, study_name
from harness.tuning.worker import directions_of, patiently

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune
    from harness.tuning.publish import TuneLog

#: Seconds between two tables of the trials while the search goes on.
_TABLE_SECONDS = 20.0


def run_tune(loaded: LoadedTune, spec: Spec) -> Outcome:
    """Search until `tune.trials` trials are there, then write what was found.

    `spec` says how workers load the same tuning. Raises `UserError` for what is refused before any work.
    """
    from harness.tuning.publish import TuneLog

    began = time.monotonic()
    for note in loaded.notes:
        print(note, file=sys.stderr, flush=True)
    with _stopping_on_sigterm():
        opened = open_study(loaded, directions_of(loaded), spec.beat, spec.grace)
        _write_what(loaded)
        log = TuneLog(loaded, opened.study)
        with opened.alone():
            run_id = log.open()
        try:
            failures = _search(loaded, opened, replace(spec, parent=os.getpid(), run_id=run_id or None))
            if failures:
                log.finish("FAILED")
                return Outcome("", [], failures)
            found = _finish(loaded, opened, log)
        except KeyboardInterrupt:
            log.finish("KILLED")
            raise
        finally:
            log.close()
    print(f"tune {study_name(loaded)}: done in {clock(time.monotonic() - began)}", file=sys.stderr, flush=True)
    return found


def _write_what(loaded: LoadedTune) -> None:
    """`tune.json`: what is searched, for whoever finds the folder later."""
    what = {
        "study": study_name(loaded),
        "identity": loaded.identity,
        "command": loaded.command,
        "tune": loaded.tree,
    }
    write_json(loaded.folder / "tune.json", what)


def worker_count(loaded: LoadedTune) -> tuple[int, list[str] | None]:
    """How many workers, and the GPUs that they take turns in having (None without GPUs)."""
    cfg, compute = loaded.cfg, loaded.base.cfg.compute
    if compute.device != "cpu":
        import torch

        if torch.cuda.is_available() and not compute.device.startswith("cuda:"):
            gpus = gpu_groups(compute.processes)
            return cfg.workers or max(1, len(gpus)), gpus or None
        if torch.cuda.is_available():  # one device that was named
            return cfg.workers or 1, None
    return cfg.workers or max(1, min(8, cpu_count() // (compute.threads * compute.processes))), None


def _search(loaded: LoadedTune, opened: Opened, spec: Spec) -> dict[str, str]:
    """Run workers until the wanted number of trials is there; what made it end before that, by name."""
    from harness.tuning.table import write_trials

    study, folder = opened.study, loaded.folder / "workers"
    now = tally(all_trials(study))
    wanted = loaded.cfg.trials
    _say_where(loaded, now.counted)
    if now.counted >= wanted:
        return {}
    count, gpus = worker_count(loaded)
    folder.mkdir(parents=True, exist_ok=True)
    display = Display(wanted, study.directions)
    crew = Crew(spec, min(count, wanted - now.counted), gpus, folder)
    written = time.monotonic()
    failures: dict[str, str] = {}
    try:
        while crew.alive():
            crew.poll(0.5 if display.live else 1.0, display.say)
            if failures := _hopeless(crew, patiently(lambda: tally(all_trials(study))), now):
                break
            if display.due():
                display.update(patiently(lambda: all_trials(study)), _running(crew))
            if time.monotonic() - written > _TABLE_SECONDS:
                written = time.monotonic()
                patiently(lambda: write_trials(loaded, study))
    finally:
        crew.stop()
        with contextlib.suppress(Exception):  # of how it ended, which is what matters here
            display.update(all_trials(study), [], last=True)
            forget_dead(folder, GRACE)
            write_trials(loaded, study)
    return failures


def _running(crew: Crew) -> list[str]:
    return [words for hand in crew.hands if (words := hand.describe())]


def _hopeless(crew: Crew, now: Tally, before: Tally) -> dict[str, str]:
    """Why it makes no sense to go on: workers die one after the other, or no trial does anything but fail."""
    if len(crew.unable) > 1 + len(crew.hands):
        return {"workers": f"{len(crew.unable)} could not begin ({crew.unable[-1]}); their logs are in {crew.folder}"}
    if crew.deaths > 3 * len(crew.hands) + 6:
        return {"workers": f"{crew.deaths} died and no trial ended in between; their logs are in {crew.folder}"}
    failed, fine = now.failed - before.failed, now.complete + now.pruned
    if not fine and failed >= 5 + len(crew.hands):
        return {"trials": f"the first {failed} all failed; `trials.csv` says why"}
    return {}


def _say_where(loaded: LoadedTune, counted: int) -> None:
    there = f", {counted} of them there" if counted else ""
    print(
        f"tune {study_name(loaded)}: {loaded.cfg.trials} trials{there} in {loaded.folder}", file=sys.stderr, flush=True
    )


# ---- the end ----------------------------------------------------------------------------------------------------------
def _finish(loaded: LoadedTune, opened: Opened, log: TuneLog) -> Outcome:
    """Table, figures, best configuration and confirmation, by one process of those that share the folder or database."""
    from harness.tuning.results import finish

    with _only_one(loaded.folder / "finish.lock") as mine:
        if not mine:
            return Outcome("", [f"another process writes the results in {loaded.folder}"])
        return finish(loaded, opened.study, log)


@contextmanager
def _only_one(path: Path) -> Iterator[bool]:
    """Whether this process is the one; the others do not wait for it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """A scheduler's SIGTERM is answered like Ctrl-C: workers put their trials back."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
