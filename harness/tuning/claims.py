"""Who runs which trial, and how many: one global count, however many workers, and however they die.

Counted are trials that were completed or pruned, and those that failed for a reason of their own (`FAILURE` says which).
A trial that is running or waiting holds a place. A trial whose worker died is failed without a `FAILURE`, is never
counted, and is asked for again as a new one (`RETRY_OF`).

All of this is decided with the storage's lock held (`Opened.alone`), and each step leaves a state from which the next
process to hold the lock goes on: whoever claims may die anywhere in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.tuning.presence import is_dead
from harness.tuning.storage import GRACE, Opened

#: User attributes of a trial.
WORKER, FAILURE, LOST, STOPPED, RETRY_OF, TRIES = "worker", "failure", "lost", "stopped", "retry_of", "tries"


def status(trial: FrozenTrial) -> str:
    """'complete', 'pruned', 'failed' (for a reason of its own), 'lost' (its worker died or left), 'running', 'waiting'."""
    if trial.state == TrialState.FAIL:
        return "failed" if FAILURE in trial.user_attrs else "lost"
    return trial.state.name.lower()


@dataclass(frozen=True)
class Tally:
    """How many trials there are of each `status`."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    lost: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def counted(self) -> int:
        """Those that `tune.trials` is about."""
        return self.complete + self.pruned + self.failed


def tally(trials: list[FrozenTrial]) -> Tally:
    return Tally(**Counter(status(t) for t in trials))


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials by number, not copied: to be read only."""
    return study.get_trials(deepcopy=False)


@dataclass(frozen=True)
class Claims:
    """The count of one study: `wanted` trials, each begun again at most `retries` times after its worker died."""

    opened: Opened
    workers: Path  # folder of the workers' locked files
    wanted: int
    retries: int
    grace: float = GRACE

    def claim(
        self, worker: str, prepare: Callable[[int], None], suggest: Callable[[optuna.Trial], dict[str, Any]]
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial for the worker of this name, with its values, or None where none is to be had now; see `finished`.

        `prepare` is called with the trial's number before the sampler is asked; `suggest` asks it. Both run with the lock
        held, so that each worker's values take account of all that are being tried.
        """
        with self.opened.alone():
            trials = self.reap()
            now = tally(trials)
            if now.counted + now.running >= self.wanted:
                return None
            # The one that waits longest, if any does: that is what Optuna gives out.
            prepare(min((t.number for t in trials if t.state == TrialState.WAITING), default=len(trials)))
            trial = self.opened.study.ask()
            # In this order: a trial with a name but no sign of life could never be found dead on another host.
            self.opened.beat(trial.number)
            trial.set_user_attr(WORKER, worker)
            return trial, suggest(trial)

    def finished(self) -> bool:
        """Whether the wanted number is there."""
        return tally(all_trials(self.opened.study)).counted >= self.wanted

    def reap(self) -> list[FrozenTrial]:
        """Fail the trials of dead workers and ask for them again; all trials after that. Needs the lock."""
        study = self.opened.study
        self.opened.fail_stale()
        trials = all_trials(study)
        dead = {
            name
            for name in self._at_work(trials)
            if is_dead(self.workers, name, self.grace, missing=not self.opened.database)
        }
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            name = trial.user_attrs.get(WORKER)
            if name is None:  # whoever claimed it died before the claim was complete: nobody else holds the lock
                self._fail(trial, "its worker died as it began")
            elif name in dead:
                self._fail(trial, f"worker {name} died")
        trials = all_trials(study)
        again = {t.user_attrs.get(RETRY_OF) for t in trials}
        lost = [t for t in trials if status(t) == "lost" and t.number not in again]
        for trial in lost:
            self._ask_again(trial)
        return all_trials(study) if lost else trials

    @staticmethod
    def _at_work(trials: list[FrozenTrial]) -> set[str]:
        return {t.user_attrs[WORKER] for t in trials if t.state == TrialState.RUNNING and WORKER in t.user_attrs}

    def _fail(self, trial: FrozenTrial, reason: str) -> None:
        why = {} if STOPPED in trial.user_attrs or FAILURE in trial.user_attrs else {LOST: reason}
        self.opened.end(trial.number, why)

    def _ask_again(self, trial: FrozenTrial) -> None:
        tries = trial.user_attrs.get(TRIES, 0) + (STOPPED not in trial.user_attrs)
        if tries > self.retries:
            return
        # What it was asked to try, where it died before it had taken all of it.
        values = trial.system_attrs.get("fixed_params", {}) | trial.params
        self.opened.study.enqueue_trial(values, user_attrs={RETRY_OF: trial.number, TRIES: tries})


def put_back(opened: Opened, trial: optuna.Trial) -> None:
    """Give up a trial because the worker was asked to leave; it is asked for again without being held against it."""
    opened.end(trial.number, {STOPPED: True})


def give_up(opened: Opened, trial: optuna.Trial, reason: str) -> None:
    """Fail a trial for a reason of its own: it is counted, and not tried again."""
    opened.end(trial.number, {FAILURE: reason})
