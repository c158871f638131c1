"""A search in tracking: the study is the parent run, each trial a child of it; each knows the other by id and number.

The command opens the run of a trial when it hands it out and closes it from what the storage says of the trial. In the end
all children are brought in line in the same way: a trial that was killed, or that ended while the service was away, is put
right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from harness.config.compose import flatten
from harness.errors import UserError
from harness.provenance import git_state
from harness.search.loaded import LoadedTune
from harness.search.storage import CREATED
from harness.search.trials import all_trials, reason, status
from harness.store import read_jsonl
from harness.study.cells import make_cells
from harness.tracking.base import Point, Status
from harness.tracking.mlflow_tracker import open_tracker
from harness.tracking.uri import redact, without_logins

#: Tags of a child run.
STATE, NUMBER, REASON = "trial.state", "trial.number", "trial.reason"
#: What a trial that ended is marked with, and how its run ended.
_ENDS: dict[str, tuple[str, Status]] = {
    "complete": ("complete", "FINISHED"),
    "pruned": ("pruned", "KILLED"),
    "failed": ("failed", "FAILED"),
    "lost": ("killed", "KILLED"),
}


class SearchLog:
    """The parent run, the same one for every command, host and restart of one study in one storage, and its children."""

    def __init__(self, loaded: LoadedTune, study: optuna.Study) -> None:
        self.loaded, self.study = loaded, study
        cfg = loaded.base.cfg
        self.tracker = open_tracker(cfg.tracking, cfg.runs_dir, cfg.study.name, system_metrics=False)
        self.run = ""
        self._open: dict[int, str] = {}  # runs of trials that are at work

    def open(self) -> str:
        """Open the run or find it again; its id, or "" where nothing is tracked.

        To be called with the storage's lock held, so that two hosts do not both make one. Raises `UserError` where the
        service is not there.
        """
        loaded, git = self.loaded, git_state()
        params = {k: redact(str(v)) for k, v in flatten({"tune": loaded.tree, **loaded.base.tree}).items()}
        tags = {
            "study": loaded.name,
            "kind": "tune",
            "tune.identity": loaded.identity,
            "tune.folder": str(loaded.folder),
            "command": without_logins(loaded.command),
            "git_sha": git.sha,
            "git_dirty": str(git.dirty),
        }
        # The identity says what is searched; when it was made tells two searches of the same on one server apart.
        key = f"tune:{loaded.name}:{loaded.identity}:{self.study.user_attrs.get(CREATED, '')}"
        self.run = self.tracker.open_study(loaded.name, params, tags, key=key)
        return self.run

    # ---- trials ---------------------------------------------------------------------------------------------------
    def begin(self, number: int, params: Mapping[str, Any]) -> str:
        """Open the run of a trial that begins; its id, or "" where it has none (yet)."""
        if not self.run:
            return ""
        if number not in self._open:
            self._open[number] = self._child(number, params)
        return self.tracker.resolve(self._open[number]) or ""

    def end(self, trial: FrozenTrial) -> None:
        """Close the run of a trial that ended, with all that the storage knows of it."""
        if trial.number in self._open:
            self._close(trial, self._open.pop(trial.number))

    def settle(self) -> dict[int, str]:
        """Bring the children in line with the storage; the run id of each trial that has one, by number.

        A trial that ended without a run, or whose run does not say how it ended, is logged from the storage.
        """
        if not self.run:
            return {}
        children = self.tracker.children(self.run)
        runs = {int(tags[NUMBER]): run for run, tags in children.items() if NUMBER in tags}
        for trial in all_trials(self.study):
            run, ended = runs.get(trial.number), _ENDS.get(status(trial))
            known = children.get(run or "", {})
            if ended is None or trial.datetime_start is None or (known.get(STATE), known.get("status")) == ended:
                continue
            run = run or self._child(trial.number, trial.params)
            self._close(trial, run)
            runs[trial.number] = self.tracker.resolve(run) or ""
        return {number: run for number, run in runs.items() if run}

    def _child(self, number: int, params: Mapping[str, Any]) -> str:
        name = self.loaded.name
        tags = {NUMBER: str(number), "study": name, "method": self.loaded.cfg.method}
        return self.tracker.open_cell(
            self.run, f"{name}/{number}", f"trial-{number}", {"trial": number, **params}, tags
        )

    def _close(self, trial: FrozenTrial, run: str) -> None:
        """All of this may be done again; the state, which says that nothing is missing, comes last.

        Few calls, since each is a transaction: a store on a disk takes some 20 ms for one.
        """
        state, ended = _ENDS[status(trial)]
        curves = curve_points(self.loaded, trial.params) if state != "killed" else []
        lines = [*curves, *score_points(self.loaded, trial)]
        if lines:
            self.tracker.log_curves(run, lines)
        assert trial.datetime_complete is not None, "a trial that ended knows when"
        self.tracker.finish(run, ended, int(1000 * trial.datetime_complete.timestamp()))
        self.tracker.set_tags(run, {STATE: state, REASON: reason(trial)})


# ---- what the run of a trial shows ------------------------------------------------------------------------------------
def curve_points(loaded: LoadedTune, params: Mapping[str, Any]) -> list[Point]:
    """The training curves of a trial's weights; none where nothing was trained or the values are refused."""
    try:
        session = loaded.context.session_of(loaded.job(dict(params)))
        lines = read_jsonl(make_cells(session)[0].weights.curves)
    except UserError:
        return []
    return [
        {"name": name, "value": value, "step": line["step"], "time_ms": line["time_ms"]}
        for line in lines
        for name, value in line["values"].items()
    ]


def score_points(loaded: LoadedTune, trial: FrozenTrial) -> list[Point]:
    """Scores, objectives, constraints and times as points of when the trial began, NFE on the step axis (0: at no one)."""
    attrs, found = trial.user_attrs, list[tuple[str, int, float]]()
    for key, value in attrs.get("score", {}).items():
        column, _, nfe = key.partition("@")
        found.append((column, int(nfe), value))
    objectives = zip(loaded.cfg.objectives.items(), trial.values or [], strict=False)
    found += [(f"objective.{name}", o.nfe, value) for (name, o), value in objectives]
    found += [(f"constraint.{name}", 0, value) for name, value in trial.constraints.items()]
    found += [(f"seconds.{name}", 0, value) for name, value in attrs.get("seconds", {}).items()]
    assert trial.datetime_start is not None, "it was at work"
    time_ms = int(1000 * trial.datetime_start.timestamp())
    return [
        {"name": name, "value": float(value), "step": step, "time_ms": time_ms}
        for name, step, value in found
        if math.isfinite(value)
    ]
