"""What a storage says of trials: what became of each, how many there are, which are good, and all of them as a table."""

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
from harness.store import write_bytes, write_parquet

#: User attributes of a trial: the command that asked for it, why it failed, was lost, put back or pruned, the trial that it
#: is asked for again in the place of, how often that happened, and its run in tracking.
ASKED_BY, FAILURE, LOST, STOPPED, PRUNED = "asked_by", "failure", "lost", "stopped", "pruned"
RETRY_OF, TRIES, RUN_ID = "retry_of", "tries", "run_id"
TABLES = ("trials.parquet", "trials.csv")
_KINDS = {
    "number": "Int64", "state": "string", "feasible": "boolean", "trained": "boolean", ASKED_BY: "string",
    RETRY_OF: "Int64", "reason": "string", RUN_ID: "string",
}  # fmt: skip


def status(trial: FrozenTrial) -> str:
    """'complete', 'pruned', 'failed' (for a reason of its own), 'lost' (killed or put back), 'running', 'waiting'."""
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


def tally(trials: Sequence[FrozenTrial]) -> Tally:
    return Tally(**Counter(status(t) for t in trials))


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
    parts = [f"{count} {word}" for word, count in (("pruned", now.pruned), ("failed", now.failed)) if count]
    if not able:
        parts.append("none meets the constraints yet" if now.complete else "none done yet")
    elif len(directions) == 1:
        best = min(able, key=lambda t: t.values[0] * signs(directions)[0])
        parts.append(f"best {best.values[0]:.4g} (trial {best.number})")
    return ", ".join(parts)


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
    for name in (name for name in map(str, frame) if name.startswith("param.")):
        if (
            frame[name].dropna().map(type).nunique() > 1
        ):  # mixed choices (`auto`, 4) become text, which parquet can hold
            frame[name] = frame[name].map(lambda v: v if v is None else str(v))
    return frame.astype({name: kind for name, kind in _KINDS.items() if name in frame})


def write_trials(loaded: LoadedTune, study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """Write the table as it is now to `trials.parquet` and `trials.csv` in the tune folder; returns it."""
    frame = trials_frame(study, runs)
    write_parquet(loaded.folder / TABLES[0], frame)
    write_bytes(loaded.folder / TABLES[1], frame.to_csv(index=False).encode("utf-8"))
    return frame
