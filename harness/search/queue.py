"""Which trials are asked for: one global count, however many commands on however many hosts, and however they die.

Counted are trials that were completed or pruned, and those that failed for a reason of their own (`FAILURE` says which).
A running trial holds a place. A trial that was lost with its worker or its command, or put back, is failed without a
`FAILURE`, is never counted, and is asked for again as a new one (`RETRY_OF`).

All of this is decided with the storage's lock held (`Store.alone`), and each step leaves a state from which the next
command to hold the lock goes on: whoever asks may die anywhere in between.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.jobs.locks import if_free, waiting_for
from harness.search.schema import TuneConfig, suggest
from harness.search.storage import BEAT, Store, patient
from harness.search.trials import ASKED_BY, FAILURE, LOST, RETRY_OF, STOPPED, TRIES, all_trials, status, tally


class Queue:
    """Asks for trials of one study as one of its commands; `asked` are its own that have not ended, by number.

    A lock file for each command tells whether it lives: the system lets the lock go when the command dies. Where hosts
    share a database but not this folder, the database's heartbeats tell.
    """

    def __init__(self, store: Store, cfg: TuneConfig, folder: Path) -> None:
        """`folder` holds the commands' lock files."""
        self.store, self.cfg, self.folder = store, cfg, folder
        self.name = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        self.asked: dict[int, optuna.Trial] = {}

    @contextmanager
    def present(self) -> Iterator[None]:
        """Say inside the block that this command lives; at its end its trials that are left are put back."""
        mine, ended = self._lock_file(self.name), threading.Event()
        with contextlib.ExitStack() as stack:
            with self.store.alone():
                stack.enter_context(waiting_for(mine))
            threading.Thread(target=self._beat, args=(ended,), daemon=True).start()
            try:
                yield
            finally:
                ended.set()
                self._leave()
                mine.unlink(missing_ok=True)

    def _lock_file(self, name: str) -> Path:
        return self.folder / f"{Path(name).name}.lock"  # the name is read from a storage that others write to

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            for number in list(self.asked):
                with contextlib.suppress(Exception):  # a database that is away for a moment
                    self.store.beat(number)

    @patient
    def _leave(self) -> None:
        with self.store.alone():
            for number in list(self.asked):
                self.end(number, {STOPPED: True})
            self._reap()
            for path in self.folder.glob("*.lock"):  # of dead commands, none of whose trials is running any more
                if self._is_gone(path.stem):
                    path.unlink(missing_ok=True)

    # ---- asking ---------------------------------------------------------------------------------------------------
    @patient
    def ask(self, most: int) -> None:
        """Ask for up to `most` trials, as far as the count allows; they are in `asked` then."""
        with self.store.alone():
            self._reap()
            now = tally(all_trials(self.store.study))
            for _ in range(min(most, self.cfg.trials - now["counted"] - now["running"])):
                self._ask()

    def _ask(self) -> None:
        study, trials = self.store.study, all_trials(self.store.study)
        # The one that waits longest, if any does: that is what Optuna gives out.
        number = min((t.number for t in trials if t.state == TrialState.WAITING), default=len(trials))
        study.sampler = make_sampler(self.cfg, number)
        trial = study.ask()
        # In this order: a trial with a name but no sign of life could never be found dead on another host.
        self.store.beat(trial.number)
        trial.set_user_attr(ASKED_BY, self.name)
        suggest(trial, self.cfg)
        self.asked[trial.number] = trial

    @patient
    def end(self, number: int, attributes: dict[str, Any], state: TrialState = TrialState.FAIL) -> None:
        """End a trial of this command without values; the attributes say why."""
        self.store.end(number, attributes, state)
        self.asked.pop(number, None)

    # ---- what died ------------------------------------------------------------------------------------------------
    def _reap(self) -> None:
        """Fail the running trials of dead commands and ask again for what was lost."""
        optuna.storages.fail_stale_trials(self.store.study)  # those whose hosts were not heard of for too long
        running = [t for t in all_trials(self.store.study) if t.state == TrialState.RUNNING]
        gone = {name for name in {t.user_attrs.get(ASKED_BY) for t in running} if name and self._is_gone(name)}
        for trial in running:
            name = trial.user_attrs.get(ASKED_BY)
            if name is None or name in gone:
                # Without a name it died before it had told it: nobody else holds the lock.
                why = f"command {name} died" if name else "its command died as it began"
                known = STOPPED in trial.user_attrs or FAILURE in trial.user_attrs
                self.store.end(trial.number, {} if known else {LOST: why}, TrialState.FAIL)
            elif name == self.name and trial.number not in self.asked:
                self.store.end(trial.number, {STOPPED: True, LOST: "asking for it was interrupted"}, TrialState.FAIL)
        trials = all_trials(self.store.study)
        again = {t.user_attrs.get(RETRY_OF) for t in trials}
        for trial in trials:
            if status(trial) == "lost" and trial.number not in again:
                self._ask_again(trial)

    def _is_gone(self, name: str) -> bool:
        """Whether the command of this name is known to have died."""
        if name == self.name:
            return False
        path = self._lock_file(name)
        if not path.exists():  # of a host that shares the database alone, if there is one
            return self.store.database is None
        with if_free(path) as free:
            return free

    def _ask_again(self, trial: FrozenTrial) -> None:
        tries = trial.user_attrs.get(TRIES, 0) + (STOPPED not in trial.user_attrs)
        if tries > self.cfg.retries:
            return
        # What it was asked to try, where it died before it had taken all of it.
        values = trial.system_attrs.get("fixed_params", {}) | trial.params
        self.store.study.enqueue_trial(values, user_attrs={RETRY_OF: trial.number, TRIES: tries})


# ---- samplers and pruners ----------------------------------------------------------------------------------------------
def make_sampler(cfg: TuneConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of this number."""
    # A function of the trial, not of the command: one that is started again must not repeat what it drew before.
    seed = int(np.random.SeedSequence([cfg.seed, number]).generate_state(1)[0])
    if cfg.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if cfg.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=cfg.startup, seed=seed, multivariate=True, group=True, constant_liar=True
    )


def make_pruner(cfg: TuneConfig, steps: int) -> optuna.pruners.BasePruner:
    """The pruner for trials of `steps` training steps."""
    pruner = cfg.pruner
    first = max(1, round(pruner.warmup * steps))
    if pruner.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=first)
    if pruner.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=max(first, steps))
    return optuna.pruners.NopPruner()
