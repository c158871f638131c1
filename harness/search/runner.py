"""A search from the command's side: its trials as work for the worker pool, and a command from its beginning to its end.

All of it runs in the command's own process, which alone talks to the storage and to tracking. Any number of such commands,
on any hosts, may work on one study at the same time; one of them writes the results.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.errors import UserError
from harness.jobs.locks import if_free
from harness.jobs.loop import Work, work_off
from harness.jobs.pool import WORKERS_LOG, Message, Pool
from harness.jobs.progress import Display, clock
from harness.jobs.schedule import Task, TaskKey
from harness.provenance import git_state
from harness.search.loaded import LoadedTune
from harness.search.publish import SearchLog
from harness.search.queue import Queue, make_pruner
from harness.search.results import finish
from harness.search.storage import Store, open_store, patient
from harness.search.trial import TrialResult, begin
from harness.search.trials import (
    CODE,
    COMMIT,
    FAILURE,
    LOST,
    PRUNED,
    RUN_ID,
    TRIES,
    all_trials,
    counts,
    so_far,
    tally,
    write_trials,
)
from harness.store import write_text
from harness.study.cells import make_cells
from harness.study.folder import sweep_parts
from harness.study.made import differing
from harness.study.memory import check_memory
from harness.study.outcome import Outcome
from harness.study.runner import worker_count
from harness.study.standing import what_changed
from harness.training.distributed import gpu_groups

#: What all trials need (the judge, the data's own scores) is made by one worker before the first trial is asked for.
PREPARE: TaskKey = ("prepare", "judge")
#: Seconds between two tables of the trials while the search goes on.
_TABLE_SECONDS = 20.0


def _key(number: int) -> TaskKey:
    return "trial", str(number)


class Search(Work):
    """The trials of one search. `tasks` are those that this command has handed out, and all that are counted.

    `words` are for the progress line.
    """

    def __init__(self, loaded: LoadedTune, store: Store, queue: Queue, log: SearchLog) -> None:
        self.loaded, self.store, self.queue, self.log = loaded, store, queue, log
        self.tasks: dict[TaskKey, Task] = {PREPARE: Task(PREPARE)}
        self.failures: dict[str, str] = {}
        store.study.pruner = make_pruner(loaded.cfg, loaded.context.session.cfg.scale.steps)
        self._written = time.monotonic()
        self._look()
        self._before = self._now

    @patient
    def _look(self) -> None:
        """What the storage says now, of other commands' trials too."""
        trials = all_trials(self.store.study)
        self._now, self.words = tally(trials), so_far(trials, self.store.study.directions)
        for trial in trials:
            if counts(trial):
                key = _key(trial.number)
                self.tasks.setdefault(key, Task(key, state="done"))

    # ---- what there is to do --------------------------------------------------------------------------------------
    def unfinished(self) -> bool:
        return not self.failures and self._now["counted"] < self.loaded.cfg.trials

    def hopeless(self) -> bool:
        """Whether no trial does anything but fail: then it makes no sense to go on."""
        now = self._now
        failed, fine = now["failed"] - self._before["failed"], now["complete"] + now["pruned"]
        if not fine and failed >= 5 + (self.loaded.cfg.workers or 8):
            self.failures["trials"] = f"the first {failed} all failed; `trials.csv` says why"
        return bool(self.failures)

    def ready(self, free: int) -> list[Task]:
        missing = free - len(self._waiting())
        if PREPARE not in self.tasks and missing > 0:
            self.queue.ask(missing)
            for number, trial in sorted(self.queue.asked.items()):
                if _key(number) not in self.tasks:
                    self._hand_out(trial)
        return self._waiting()

    def _waiting(self) -> list[Task]:
        return [t for t in self.tasks.values() if t.state == "waiting"]

    def _hand_out(self, trial: optuna.Trial) -> None:
        """Make a task of a trial that was asked for."""
        self._open_run(trial)
        try:
            job = self.loaded.job(trial.params)
        except UserError as error:  # values that do not go together: this trial alone
            self._end(trial.number, {FAILURE: " ".join(str(error).split())})
            return
        # One that has been lost too often is not asked for again: another takes its place.
        tries = 2 if trial.user_attrs.get(TRIES, 0) < self.loaded.cfg.retries else 1
        self.tasks[_key(trial.number)] = Task(_key(trial.number), job=job, tries=tries)

    @patient
    def _open_run(self, trial: optuna.Trial) -> None:
        trial.set_user_attr(COMMIT, git_state().label)
        trial.set_user_attr(CODE, self.loaded.code)
        run = self.log.begin(trial.number, trial.params)
        if run:
            trial.set_user_attr(RUN_ID, run)

    # ---- what came of it ------------------------------------------------------------------------------------------
    @patient
    def answer(self, task: Task, question: Any) -> bool:
        """Whether a trial that has come to this value at this step had better be given up."""
        step, value = question
        trial = self.queue.asked[int(task.key[1])]
        try:
            trial.report(value, step)
            return trial.should_prune()
        except optuna.exceptions.UpdateFinishedTrialError:
            return False  # taken for dead, and begun again by another command: what comes of it will not be used

    def done(self, task: Task, value: TrialResult | None) -> None:
        if value is None:
            del self.tasks[PREPARE]
            return
        number = int(task.key[1])
        if value.pruned:
            self._end(number, {PRUNED: value.pruned}, TrialState.PRUNED)
        elif not all(map(math.isfinite, value.values)):
            self._end(number, {FAILURE: f"its objective is not a number ({', '.join(map(str, value.values))})"})
        else:
            self._complete(number, value)
            self._ended(number)

    @patient
    def _complete(self, number: int, result: TrialResult) -> None:
        """Keep all that is known of a finished trial with it, then finish it."""
        trial = self.queue.asked[number]
        facts = {"score": result.scores, "seconds": result.seconds, "trained": result.trained}
        try:
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            for name, broken in zip(self.loaded.cfg.constraints, result.constraints, strict=True):
                # Optuna takes no NaN here; a constraint on what could not be measured is not met.
                trial.set_constraint(name, broken if math.isfinite(broken) else sys.float_info.max)
            self.store.study.tell(trial, list(result.values))
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            # Told at an earlier attempt, of which the answer was lost; or taken for dead, and begun again elsewhere.
            if self.store.trial(number).state == TrialState.RUNNING:
                raise
        del self.queue.asked[number]

    def failed(self, task: Task, message: Message) -> None:
        line = " ".join(message.text.strip().splitlines()[-1].split())
        if message.kind == "broke":
            write_text(self.loaded.folder / "errors" / f"{'-'.join(task.key)}.txt", message.text)
        if task.key == PREPARE:
            self.failures["workers"] = f"could not begin ({line}); see {self.loaded.folder / 'errors'}"
        else:
            # With its worker it is lost, and `Queue.ask` asks for it again; else it failed for good, and is counted.
            self._end(int(task.key[1]), {LOST if message.kind == "died" else FAILURE: line})

    def again(self, task: Task) -> None:
        if task.key != PREPARE:
            self._end(int(task.key[1]), {LOST: "its worker died"})

    def _end(self, number: int, why: dict[str, str], state: TrialState = TrialState.FAIL) -> None:
        """A trial ended without values."""
        self.queue.end(number, why, state)
        self.tasks.pop(_key(number), None)  # `_look` puts it back where it counts
        self._ended(number)

    @patient
    def _ended(self, number: int) -> None:
        self.log.end(self.store.trial(number))
        self._look()

    def tick(self) -> None:
        self._look()
        if time.monotonic() - self._written > _TABLE_SECONDS:
            self._written = time.monotonic()
            self.write()

    @patient
    def write(self) -> None:
        """The table of the trials as it is now."""
        write_trials(self.loaded, self.store.study)


# ---- the command --------------------------------------------------------------------------------------------------------
def run_search(loaded: LoadedTune) -> Outcome:
    """Search until `tune.trials` trials are there, then write what was found.

    Raises `UserError` for what is refused before any work.
    """
    began = time.monotonic()
    for note in loaded.notes:
        _say(note)
    # Of the whole study, whose weights trials share.
    sweep_parts(loaded.folder.parents[1], Path(loaded.base.cfg.cache_dir).resolve())
    store = open_store(loaded)
    _refuse_stale(loaded, all_trials(store.study))
    log = SearchLog(loaded, store.study)
    try:
        with store.alone():
            log.open()
        failures = _search(loaded, store, log)
        if failures:
            log.tracker.finish(log.run, "FAILED")
            return Outcome("", [], failures)
        with if_free(loaded.folder / "finish.lock") as mine:
            if not mine:
                return Outcome("", [f"another command writes the results in {loaded.folder}"])
            found = finish(loaded, store.study, log)
    except KeyboardInterrupt:
        log.settle()  # runs of the trials that were put back
        log.tracker.finish(log.run, "KILLED")
        raise
    finally:
        log.tracker.close()
    _say(f"tune {loaded.name}: done in {clock(time.monotonic() - began)}")
    return found


def _refuse_stale(loaded: LoadedTune, trials: list[FrozenTrial]) -> None:
    """Raise `UserError` where trials that count were made by other code than what is here; with `stale=keep` say so."""
    made = [
        (t.user_attrs.get(COMMIT, "?"), differing(loaded.code, t.user_attrs.get(CODE, {}))) for t in trials if counts(t)
    ]
    stale = [(commit, modules) for commit, modules in made if modules]
    if not stale:
        return
    line = f"{len(stale)} of {len(made)} trials were made by other code than what is here: {what_changed(*stale[0])}"
    ways = "stale=keep goes on with them as they are, tune.name=NAME begins another search"
    if loaded.base.cfg.stale == "refuse":
        raise UserError(f"{line}; {ways}")
    _say(f"stale=keep: {line}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def workers_of(loaded: LoadedTune) -> int:
    """Trials at a time: as told, or one for each GPU, or one for each core."""
    return loaded.cfg.workers or worker_count(loaded.context.session)


def _search(loaded: LoadedTune, store: Store, log: SearchLog) -> dict[str, str]:
    """Run trials until the wanted number is there; what made it end before that, by name."""
    counted, wanted = tally(all_trials(store.study))["counted"], loaded.cfg.trials
    there = f", {counted} of them there" if counted else ""
    _say(f"tune {loaded.name}: {wanted} trials{there} in {loaded.folder}")
    if counted >= wanted:
        return {}
    check_memory(loaded.context.session, make_cells(loaded.context.session))
    queue = Queue(store, loaded.cfg, loaded.folder / "commands")
    search = Search(loaded, store, queue, log)
    display = Display(search.tasks, planned=wanted, note=lambda: search.words, what="trials")
    try:
        with queue.present(), contextlib.ExitStack() as stack:
            compute = loaded.base.cfg.compute
            gpus = gpu_groups(compute.processes) if loaded.context.session.numerics.device == "cuda" else None
            count = min(workers_of(loaded), wanted - counted)
            # A copy is without the session that was built from it.
            pool = Pool(
                begin, replace(loaded.context), count, loaded.folder / "errors" / WORKERS_LOG, gpus, compute.threads
            )
            stack.callback(pool.stop)
            work_off(search, pool, display, stop=search.hopeless)
    finally:
        with contextlib.suppress(Exception):  # of how it ended, which is what matters here
            search.write()
    return search.failures
