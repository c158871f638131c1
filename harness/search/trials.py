"""What a storage says of trials: what became of each, how many there are, the best of them, and all of them as a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.search.loaded import LoadedTune
from harness.search.schema import overrides_of
from harness.store import write_bytes, write_parquet

#: User attributes of a trial: the command that asked for it, why it failed, was lost, put back or pruned, the trial that it
#: is asked for again in the place of, how often that happened, and its run in tracking.
ASKED_BY, FAILURE, LOST, STOPPED, PRUNED = "asked_by", "failure", "lost", "stopped", "pruned"
RETRY_OF, TRIES, RUN_ID = "retry_of", "tries", "run_id"
#: And the commit and the code (`harness.search.loaded.code_of_trials`) that made it.
COMMIT, CODE = "git_sha", "code"
TABLES = ("trials.parquet", "trials.csv")
_KINDS = {
    "number": "Int64", "state": "string", "feasible": "boolean", "trained": "boolean", ASKED_BY: "string",
    RETRY_OF: "Int64", "reason": "string", RUN_ID: "string", COMMIT: "string",
}  # fmt: skip


def status(trial: FrozenTrial) -> str:
    """'complete', 'pruned', 'failed' (for a reason of its own), 'lost' (killed or put back), 'running', 'waiting'."""
    if trial.state == TrialState.FAIL:
        return "failed" if FAILURE in trial.user_attrs else "lost"
    return trial.state.name.lower()


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of those that `tune.trials` is about."""
    return status(trial) in ("complete", "pruned", "failed")


def tally(trials: Sequence[FrozenTrial]) -> Counter[str]:
    """How many trials there are of each `status`, and how many are "counted"."""
    return Counter(map(status, trials)) + Counter(counted=sum(map(counts, trials)))


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials by number, not copied: to be read only."""
    return study.get_trials(deepcopy=False)


def reason(trial: FrozenTrial) -> str | None:
    """Why a trial has no result, in words; None where there is nothing to say."""
    attrs = trial.user_attrs
    stopped = "the command was stopped" if STOPPED in attrs else None
    return attrs.get(FAILURE) or attrs.get(LOST) or attrs.get(PRUNED) or stopped


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial was completed and met all constraints (which are at most 0 then)."""
    return trial.state == TrialState.COMPLETE and all(c <= 0 for c in trial.constraints.values())


def signs(directions: Sequence[StudyDirection]) -> np.ndarray:
    """1 for each objective that is minimised and -1 for each that is maximised, (K,)."""
    return np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])


def so_far(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> str:
    """In words, for the progress line: how many were pruned and failed, and the best feasible one of one objective."""
    now, able = tally(trials), [t for t in trials if feasible(t)]
    parts = [f"{now[word]} {word}" for word in ("pruned", "failed") if now[word]]
    if not able:
        parts.append("none meets the constraints yet" if now["complete"] else "none done yet")
    elif len(directions) == 1:
        best = min(able, key=lambda t: t.values[0] * signs(directions)[0])
        parts.append(f"best {best.values[0]:.4g} (trial {best.number})")
    return ", ".join(parts)


# ---- the best -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Candidate:
    """A configuration worth a second look: the trial that stands for it, and the overrides that make it."""

    trial: FrozenTrial
    overrides: tuple[str, ...]
    feasible: bool

    @property
    def label(self) -> str:
        return f"trial-{self.trial.number:04d}"

    def in_words(self, loaded: LoadedTune) -> str:
        """One line: which trial, its values, and whether it is the best, the knee of a front, or only the closest."""
        values = ", ".join(f"{n} {v:.4g}" for n, v in zip(loaded.cfg.objectives, self.trial.values, strict=True))
        kind = "Best:" if len(self.trial.values) == 1 else "Knee of the front:"
        kind = kind if self.feasible else "No trial meets the constraints; the closest is"
        return f"{kind} trial {self.trial.number} ({values})"


def order(cost_TK: np.ndarray) -> list[int]:
    """Rows from best to worst, where lower is better in each column.

    With one column by its value. With several, by the distance to the ideal point, which has the lowest value of each
    column, after every column was scaled to 0..1: the first is the knee of the front.
    """
    span_K = np.ptp(cost_TK, axis=0)
    unit_TK = (cost_TK - cost_TK.min(0)) / np.where(span_K > 0, span_K, 1.0)
    return [int(i) for i in np.argsort((unit_TK**2).sum(1), kind="stable")]


def candidates(loaded: LoadedTune, study: optuna.Study, count: int) -> list[Candidate]:
    """At most `count` distinct configurations, the best first; empty where no trial was completed.

    With several objectives those on the front come first, the knee before the others, then the rest. Where no trial
    meets the constraints, the one that is closest to it, alone and marked as not feasible.
    """
    done = [t for t in all_trials(study) if t.state == TrialState.COMPLETE]
    able = [t for t in done if feasible(t)]
    if done and not able:
        able = [min(done, key=lambda t: sum(max(0.0, c) for c in t.constraints.values()))]
    front = {t.number for t in (study.best_trials if len(study.directions) > 1 else able)}
    chosen: dict[tuple[str, ...], Candidate] = {}
    for layer in ([t for t in able if (t.number in front) == first] for first in (True, False)):
        if layer:
            for i in order(np.array([t.values for t in layer]) * signs(study.directions)):
                overrides = tuple(overrides_of(layer[i].params, loaded.cfg))
                chosen.setdefault(overrides, Candidate(layer[i], overrides, feasible(layer[i])))
    return list(chosen.values())[:count]


# ---- the table --------------------------------------------------------------------------------------------------------
def trials_frame(study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """All trials by number, whatever became of them; what is not known is missing.

    Columns: `number`, `state` (see `status`), `feasible`, `value.<objective>`, `constraint.<name>` (met where at most 0),
    `param.<key>`, `started`, `ended`, `seconds` (of the whole trial), and what is known of some: `score.<column>@<NFE>`,
    `seconds.<part>`, `trained` (whether a training step was run), `asked_by` (which command), `retry_of` (number of the trial
    that was lost), `reason`, `run_id`. `runs` gives the runs of trials that do not know theirs.
    """
    trials = all_trials(study)
    if not trials:
        return pd.DataFrame()
    attrs = ("number", "values", "constraints", "params", "datetime_start", "datetime_complete", "duration")
    frame = study.trials_dataframe(attrs).rename(
        columns=lambda name: re.sub("^(value|constraint|param)s_", r"\1.", name)
    )
    frame = frame.rename(columns={"datetime_start": "started", "datetime_complete": "ended", "duration": "seconds"})
    frame["seconds"] = pd.to_timedelta(frame["seconds"]).dt.total_seconds()
    frame.insert(1, "state", [status(t) for t in trials])
    frame.insert(2, "feasible", [feasible(t) if t.state == TrialState.COMPLETE else None for t in trials])
    known = pd.json_normalize([t.user_attrs for t in trials])
    wanted = [name for name in map(str, known) if name in _KINDS or name.startswith(("score.", "seconds."))]
    frame = pd.concat([frame, known[wanted]], axis=1)
    frame["reason"] = [reason(t) for t in trials]
    frame[RUN_ID] = [t.user_attrs.get(RUN_ID) or (runs or {}).get(t.number) for t in trials]
    # Choices become text, which parquet can hold where they are mixed (`auto`, 4).
    frame = frame.astype({name: "string" for name in frame.filter(like="param.").select_dtypes(object)})
    return frame.astype({name: kind for name, kind in _KINDS.items() if name in frame})


def write_trials(loaded: LoadedTune, study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """Write the table as it is now to `trials.parquet` and `trials.csv` in the tune folder; returns it."""
    frame = trials_frame(study, runs)
    write_parquet(loaded.folder / TABLES[0], frame)
    write_bytes(loaded.folder / TABLES[1], frame.to_csv(index=False).encode("utf-8"))
    return frame
