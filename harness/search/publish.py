"""A search in tracking: the study is the parent run, each trial a child of it; each knows the other by id and number.

The command opens the run of a trial when it hands it out and closes it from what the storage says of the trial. In the end
all children are brought in line in the same way: a trial that was killed, or that ended while the service was away, is put
right.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.config.compose import flatten
from harness.errors import UserError
from harness.provenance import git_state
from harness.search.loaded import LoadedTune
from harness.search.storage import CREATED, study_name
from harness.search.trials import CONSTRAINTS, all_trials, reason, status
from harness.store import read_jsonl
from harness.study.cells import make_cells
from harness.study.session import Session
from harness.tracking.base import Point, Status
from harness.tracking.mlflow_tracker import open_tracker
from harness.tracking.uri import redact, without_logins

#: Tags of a child run.
STATE, NUMBER, REASON, BEGAN = "trial.state", "trial.number", "trial.reason", "trial.began_ms"
_STATE_OF = {"complete": "complete", "pruned": "pruned", "failed": "failed", "lost": "killed"}
_STATUS: dict[str, Status] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "killed": "KILLED"}
#: Points of one training curve in a trial's run; all of them are in the files of its weights.
_POINTS = 40


class SearchLog:
    """The parent run, the same one for every command, host and restart of one study in one storage, and its children."""

    def __init__(self, loaded: LoadedTune, study: optuna.Study) -> None:
        self.loaded, self.study = loaded, study
        cfg = loaded.base.cfg
        self.tracker = open_tracker(cfg.tracking, cfg.runs_dir, cfg.study.name, system_metrics=False)
        self.run = ""
        self._open: dict[int, tuple[str, int]] = {}  # runs of trials that are at work, and when they began

    def open(self) -> str:
        """Open the run or find it again; its id, or "" where nothing is tracked.

        To be called with the storage's lock held, so that two hosts do not both make one. Raises `UserError` where the
        service is not there.
        """
        loaded, git = self.loaded, git_state()
        params = {k: _shown(k, v) for k, v in flatten({"tune": loaded.tree, **loaded.base.tree}).items()}
        tags = {
            "study": study_name(loaded),
            "kind": "tune",
            "tune.identity": loaded.identity,
            "tune.folder": str(loaded.folder),
            "command": without_logins(loaded.command),
            "git_sha": git.sha,
            "git_dirty": str(git.dirty),
        }
        # The identity says what is searched; when it was made tells two searches of the same on one server apart.
        key = f"tune:{study_name(loaded)}:{loaded.identity}:{self.study.user_attrs.get(CREATED, '')}"
        self.run = self.tracker.open_study(study_name(loaded), params, tags, key=key)
        return self.run

    # ---- trials ---------------------------------------------------------------------------------------------------
    def begin(self, number: int, params: Mapping[str, Any]) -> str:
        """Open the run of a trial that begins; its id, or "" where it has none (yet)."""
        if not self.run:
            return ""
        if number not in self._open:
            began = int(time.time() * 1000)
            self._open[number] = self._open_child(number, params, began), began
        return self.tracker.resolve(self._open[number][0]) or ""

    def end(self, trial: FrozenTrial) -> None:
        """Close the run of a trial that ended, with all that the storage knows of it."""
        if trial.number in self._open:
            self._close(trial, *self._open.pop(trial.number))

    def settle(self) -> dict[int, str]:
        """Bring the children in line with the storage; the run id of each trial that has one, by number.

        A trial that ended without a run, or whose run does not say how it ended, is logged from the storage.
        """
        if not self.run:
            return {}
        children = self.tracker.children(self.run)
        runs = {int(tags[NUMBER]): run for run, tags in children.items() if NUMBER in tags}
        for trial in all_trials(self.study):
            state, run = _STATE_OF.get(status(trial)), runs.get(trial.number, "")
            if state is None or (trial.datetime_start is None and not run):
                continue
            known = children.get(run, {})
            if known.get(STATE) == state and known.get("status") == _STATUS[state]:
                continue
            # With the time that is in the run, so that points which arrived are known to be the same.
            began = int(known.get(BEGAN, _ms(trial.datetime_start or trial.datetime_complete)))
            if not run:
                run = self._open_child(trial.number, trial.params, began)
                runs[trial.number] = self.tracker.resolve(run) or ""
            self._close(trial, run, began)
        return {number: run for number, run in runs.items() if run}

    def _open_child(self, number: int, params: Mapping[str, Any], began_ms: int) -> str:
        name = study_name(self.loaded)
        tags = {NUMBER: str(number), BEGAN: str(began_ms), "study": name, "method": self.loaded.cfg.method}
        every = {"trial": number, **params}
        return self.tracker.open_cell(self.run, f"{name}/{number}", f"trial-{number}", every, tags)

    def _close(self, trial: FrozenTrial, run: str, began_ms: int) -> None:
        """All of this may be done again; the state, which says that nothing is missing, comes last.

        Few calls, since each is a transaction: a store on a disk takes some 20 ms for one.
        """
        state = _STATE_OF[status(trial)]
        curves = points(curves_of(self.loaded, trial.params)) if state != "killed" else []
        lines = [*curves, *score_points(self.loaded, trial, began_ms)]
        if lines:
            self.tracker.log_curves(run, lines)
        self.tracker.finish(run, _STATUS[state], _ms(trial.datetime_complete))
        self.tracker.set_tags(run, {STATE: state, REASON: reason(trial)})

    def finish(self, state: Status) -> None:
        """Close the parent run."""
        self.tracker.finish(self.run, state)

    def close(self) -> None:
        """Send what waits; may be called more than once."""
        self.tracker.close()


def _ms(when: datetime.datetime | None) -> int:
    assert when is not None, "a trial that ended knows when"
    return int(1000 * when.timestamp())


def _shown(key: str, value: Any) -> str:
    return redact(str(value)) if key.endswith(("storage", "uri")) else str(value)


# ---- what the run of a trial shows ------------------------------------------------------------------------------------
def curves_of(loaded: LoadedTune, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of the training curves of a trial's weights; none where nothing was trained or the values are refused."""
    try:
        session = Session(loaded.job(0, dict(params)).tree, loaded.context.weights)
        session.adopt(loaded.session)
        return read_jsonl(make_cells(session)[0].weights.curves)
    except UserError:
        return []


def points(lines: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Lines of `curves.jsonl` as points, each curve thinned evenly to at most 40 with its last kept."""
    curves: dict[str, list[Point]] = {}
    for line in lines:
        for name, value in line["values"].items():
            point: Point = {"name": name, "value": value, "step": line["step"], "time_ms": line["time_ms"]}
            curves.setdefault(name, []).append(point)
    kept: list[Point] = []
    for curve in curves.values():
        every = -(-len(curve) // _POINTS)
        kept += curve[::-1][::every][::-1]
    return kept


def score_points(loaded: LoadedTune, trial: FrozenTrial, time_ms: int) -> list[Point]:
    """Scores, objectives, constraints and times as points at `time_ms`, NFE on the step axis (0: at no one budget).

    Scores are called `<column>@<NFE>` or `<column>@<NFE>T<temperature>`; the temperature stays in the name.
    """
    cfg, attrs = loaded.cfg, trial.user_attrs
    found: list[tuple[str, int, float]] = []
    for key, value in (attrs.get("scores") or {}).items():
        column, _, rest = key.partition("@")
        nfe, _, heat = rest.partition("T")
        found.append((f"{column}_T{heat}" if heat else column, int(nfe or 0), value))
    # Optuna gives a pruned trial the last value that it reported, which is no objective.
    values = trial.values if trial.state == TrialState.COMPLETE else []
    objectives = zip(cfg.objectives.items(), values, strict=False)
    found += [(f"objective.{name}", o.nfe, value) for (name, o), value in objectives]
    constraints = zip(cfg.constraints, attrs.get(CONSTRAINTS) or [], strict=False)
    found += [(f"constraint.{name}", 0, value) for name, value in constraints]
    found += [(f"seconds.{name}", 0, value) for name, value in (attrs.get("seconds") or {}).items()]
    return [
        {"name": name, "value": float(value), "step": step, "time_ms": time_ms}
        for name, step, value in found
        if value is not None and math.isfinite(value)
    ]
