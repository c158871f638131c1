"""A search from the command's side: opens the study, runs its trials in the worker pool, and hands over what was found.

Any number of such commands, on any hosts, may work on one study at the same time; one of them writes the results.
"""

from __future__ import annotations

import contextlib
import sys
import time

from harness.jobs.locks import if_free
from harness.jobs.loop import work_off
from harness.jobs.pool import Pool
from harness.jobs.progress import Display, clock
from harness.search.ask import Search
from harness.search.loaded import LoadedTune
from harness.search.publish import SearchLog
from harness.search.queue import Queue
from harness.search.results import finish
from harness.search.storage import Store, open_store, study_name
from harness.search.trial import begin
from harness.search.trials import all_trials, tally
from harness.store import write_json
from harness.study.folder import sweep_parts
from harness.study.outcome import Outcome
from harness.study.runner import worker_count
from harness.training.distributed import gpu_groups


def run_search(loaded: LoadedTune) -> Outcome:
    """Search until `tune.trials` trials are there, then write what was found.

    Raises `UserError` for what is refused before any work.
    """
    began = time.monotonic()
    for note in loaded.notes:
        print(note, file=sys.stderr, flush=True)
    sweep_parts(loaded.folder.parents[1], loaded.session.cache)  # of the study, whose weights trials share
    store = open_store(loaded)
    what = {
        "study": study_name(loaded),
        "identity": loaded.identity,
        "command": loaded.command,
        "tune": loaded.tree,
    }
    write_json(loaded.folder / "tune.json", what)  # for whoever finds the folder later
    log = SearchLog(loaded, store.study)
    try:
        with store.alone():
            log.open()
        failures = _search(loaded, store, log)
        if failures:
            log.finish("FAILED")
            return Outcome("", [], failures)
        with if_free(loaded.folder / "finish.lock") as mine:
            if not mine:
                return Outcome("", [f"another command writes the results in {loaded.folder}"])
            found = finish(loaded, store.study, log)
    except KeyboardInterrupt:
        log.settle()  # trials that were put back
        log.finish("KILLED")
        raise
    finally:
        log.close()
    print(f"tune {study_name(loaded)}: done in {clock(time.monotonic() - began)}", file=sys.stderr, flush=True)
    return found


def workers_of(loaded: LoadedTune) -> int:
    """Trials at a time: as told, or one for each GPU, or one for each core."""
    return loaded.cfg.workers or worker_count(loaded.session)


def _search(loaded: LoadedTune, store: Store, log: SearchLog) -> dict[str, str]:
    """Run trials until the wanted number is there; what made it end before that, by name."""
    counted, wanted = tally(all_trials(store.study)).counted, loaded.cfg.trials
    there = f", {counted} of them there" if counted else ""
    print(f"tune {study_name(loaded)}: {wanted} trials{there} in {loaded.folder}", file=sys.stderr, flush=True)
    if counted >= wanted:
        return {}
    queue = Queue(store, loaded.cfg, loaded.folder / "commands")
    search = Search(loaded, store, queue, log)
    display = Display(search.tasks, planned=wanted, note=search.note, what="trials")
    try:
        with queue.present(), contextlib.ExitStack() as stack:
            compute = loaded.base.cfg.compute
            gpus = gpu_groups(compute.processes) if loaded.session.numerics.device == "cuda" else None
            count = min(workers_of(loaded), wanted - counted)
            pool = Pool(begin, loaded.context.shared(), count, gpus, compute.threads)
            stack.callback(pool.stop)
            work_off(search, pool, display, stop=search.hopeless)
    finally:
        with contextlib.suppress(Exception):  # of how it ended, which is what matters here
            search.write()
    return search.failures
