"""A tuning in tracking: the study is the parent run, each trial a child of it; each knows the other by id and number.

Workers open and close the runs of their own trials (`TrialLog`); the process that started them has the parent
(`TuneLog`), and in the end brings every child in line with what the storage says of its trial: a trial whose worker was
killed, or that ended while the service was away, is put right from the storage.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna

from harness.config.compose import flatten
from harness.errors import UserError
from harness.provenance import git_state
from harness.tracking.base import Status, Tracker
from harness.tracking.open import open_tracker
from harness.tracking.uri import redact
from harness.tuning.claims import all_trials, status
from harness.tuning.records import curves_of, points, record_of, record_of_trial, score_points
from harness.tuning.storage import CREATED, study_name
from harness.tuning.table import reason

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune
    from harness.tuning.trial import TrialResult

State = Literal["complete", "pruned", "failed", "killed"]
#: Tags of a child run.
STATE, NUMBER, REASON, BEGAN = "trial.state", "trial.number", "trial.reason", "trial.began_ms"
_STATUS: dict[str, Status] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "killed": "KILLED"}
_STATE_OF = {"complete": "complete", "pruned": "pruned", "failed": "failed", "lost": "killed"}


def make_tracker(loaded: LoadedTune) -> Tracker:
    """Where the study's runs go, as its configuration says; no connection is made yet."""
    cfg = loaded.base.cfg
    return open_tracker(cfg.tracking, cfg.runs_dir, cfg.study.name, system_metrics=False)


# ---- a trial ----------------------------------------------------------------------------------------------------------
_KEPT: dict[str, Tracker | None] = {}  # of this process, by parent run; None where it could not be had


def _kept_tracker(parent: str, loaded: LoadedTune) -> Tracker | None:
    """The connection of this process, made with its first trial; one that cannot be made does not stop a trial."""
    if parent not in _KEPT:
        tracker = make_tracker(loaded)
        try:
            tracker.attach(parent)
        except UserError as error:
            print(
                f"warning: trials of this worker are not tracked as they run ({error}); they are added at the end",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            tracker = None
        _KEPT[parent] = tracker
    return _KEPT[parent]


class TrialLog:
    """The run of one trial. Never raises for a service that is away: the end of the tuning makes up for it."""

    def __init__(self, parent: str | None, loaded: LoadedTune) -> None:
        """`parent` is the run id that `TuneLog.open` gave; None or "" where nothing is tracked."""
        self.parent, self.loaded = parent or "", loaded
        self._tracker = _kept_tracker(self.parent, loaded) if self.parent else None
        self._run, self._began = "", 0
        self._params: dict[str, Any] = {}

    def open(self, number: int, params: Mapping[str, Any]) -> str:
        """Begin the run of trial `number`; its id, or "" where it has none (yet)."""
        if self._tracker is None:
            return ""
        self._began, self._params = _now(), dict(params)
        self._run = _open_child(self._tracker, self.parent, self.loaded, number, params, self._began)
        return self._tracker.resolve(self._run) or ""

    def finish(self, result: TrialResult | None, state: State, reason: str = "") -> None:
        """Log what came of it and close the run, once the storage has it."""
        if self._tracker is None or not self._run:
            return
        if result is not None:
            record = record_of(self.loaded, result)
        else:
            record = {"curves": curves_of(self.loaded, self._params) if state in ("pruned", "failed") else []}
        _close_child(self._tracker, self._run, state, reason, record, self._began, _now())
        self._tracker.close()  # sends what waits


def _now() -> int:
    return int(time.time() * 1000)


def _open_child(
    tracker: Tracker, parent: str, loaded: LoadedTune, number: int, params: Mapping[str, Any], began_ms: int
) -> str:
    name = f"{study_name(loaded)}/{number}"
    tags = {NUMBER: str(number), BEGAN: str(began_ms), "study": study_name(loaded), "method": loaded.cfg.method}
    return tracker.open_cell(parent, name, f"trial-{number}", {"trial": number, **params}, tags)


def _close_child(
    tracker: Tracker, run: str, state: State, reason: str, record: Mapping[str, Any], began_ms: int, ended_ms: int
) -> None:
    """All of this may be done again; the state, which says that nothing is missing, comes last.

    Few calls, since each is a transaction: a store on a disk takes some 20 ms for one.
    """
    lines = [*points(record.get("curves") or []), *score_points(record, began_ms)]
    if lines:
        tracker.log_curves(run, lines)
    tracker.finish(run, _STATUS[state], ended_ms)
    tracker.set_tags(run, {STATE: state, REASON: reason or None})


# ---- the study --------------------------------------------------------------------------------------------------------
class TuneLog:
    """The parent run: the same one for every command, host and restart of one study in one storage."""

    def __init__(self, loaded: LoadedTune, study: optuna.Study) -> None:
        self.loaded, self.study = loaded, study
        self.tracker = make_tracker(loaded)
        self.run = ""

    def open(self) -> str:
        """Open the run or find it again; its id for workers, "" where nothing is tracked.

        To be called with the storage's lock held, so that two hosts do not both make one. Raises `UserError` where the
        service is not there.
        """
        loaded, study = self.loaded, self.study
        params = {k: _shown(k, v) for k, v in flatten({"tune": loaded.tree, **loaded.base.tree}).items()}
        git = git_state()
        tags = {
            "study": study_name(loaded),
            "kind": "tune",
            "tune.identity": loaded.identity,
            "tune.folder": str(loaded.folder),
            "command": redact(loaded.command),
            "git_sha": git.sha,
            "git_dirty": str(git.dirty),
        }
        # The identity says what is searched; when it was made tells two searches of the same on one server apart.
        key = f"tune:{study_name(loaded)}:{loaded.identity}:{study.user_attrs.get(CREATED, '')}"
        self.run = self.tracker.open_study(study_name(loaded), params, tags, key=key)
        return self.run

    def settle(self) -> dict[int, str]:
        """Bring the children in line with the storage; the run id of each trial that has one, by number.

        A trial that ended without a run, or whose run does not say how it ended, is logged from the storage.
        """
        if not self.run:
            return {}
        children = self.tracker.children(self.run)
        runs = {int(tags[NUMBER]): run for run, tags in children.items() if NUMBER in tags}
        for trial in all_trials(self.study):
            state = _STATE_OF.get(status(trial))
            if state is None or (trial.datetime_start is None and trial.number not in runs):
                continue
            known = children.get(runs.get(trial.number, ""), {})
            if known.get(STATE) == state and known.get("status") == _STATUS[state]:
                continue
            run = runs.get(trial.number)
            began = int(known.get(BEGAN, _ms(trial.datetime_start or trial.datetime_complete)))
            if run is None:
                run = _open_child(self.tracker, self.run, self.loaded, trial.number, trial.params, began)
                runs[trial.number] = self.tracker.resolve(run) or ""
            # With the time that its worker used, so that points which arrived are known to be the same.
            record, ended = record_of_trial(self.loaded, trial), _ms(trial.datetime_complete)
            _close_child(self.tracker, run, state, reason(trial) or "", record, began, ended)
        return {number: run for number, run in runs.items() if run}

    def progress(self, tags: Mapping[str, Any]) -> None:
        """Tags of the parent run, such as the best value so far."""
        if self.run:
            self.tracker.set_tags(self.run, tags)

    def files(self, paths: Iterable[Path]) -> None:
        """Keep files with the run; figures in a folder of their own."""
        for path in paths:
            if self.run and path.is_file():
                self.tracker.log_file(self.run, path, "figures" if path.suffix == ".png" else None)

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """A table that the service shows with the run."""
        if self.run and rows:
            self.tracker.log_samples(self.run, rows, name)

    def finish(self, state: Status) -> None:
        """Close the run."""
        if self.run:
            self.tracker.finish(self.run, state)

    def close(self) -> None:
        """Send what waits; may be called more than once."""
        self.tracker.close()


def _ms(time: datetime.datetime) -> int:
    return int(1000 * time.timestamp())


def _shown(key: str, value: Any) -> str:
    return redact(str(value)) if key.endswith(("storage", "uri")) else str(value)
