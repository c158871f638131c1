"""The trials of a tuning as a table: one row a trial, whatever became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.store import write_atomically, write_bytes
from harness.tuning.claims import FAILURE, LOST, RETRY_OF, STOPPED, WORKER, all_trials, status
from harness.tuning.display import feasible
from harness.tuning.samplers import CONSTRAINTS

if TYPE_CHECKING:
    import pandas as pd

    from harness.tuning.load import LoadedTune

#: User attribute of a trial: its run in tracking.
RUN_ID = "run_id"
FILES = ("trials.parquet", "trials.csv")


def trials_frame(loaded: LoadedTune, study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """All trials by number; what is not known is missing.

    Columns: `number`, `state` (complete, pruned, failed, lost, running, waiting), `feasible`, `value.<objective>`,
    `constraint.<name>` (met where at most 0), `param.<key>`, `score.<column>@<NFE>`, `seconds` (of the whole trial) and
    `seconds.<part>`, `trained` (whether a training step was run), `worker`, `retry_of` (number of the trial whose worker
    was lost), `reason`, `run_id`, `started`, `ended`. `runs` gives the runs of trials that do not know theirs.
    """
    import pandas as pd

    rows = [_row(loaded, trial, runs or {}) for trial in all_trials(study)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    frame = pd.DataFrame(rows, columns=[*(n for n in _FIRST if n in names), *_sorted(names)])
    for name in _KINDS.keys() & set(frame.columns):
        frame[name] = frame[name].astype(_KINDS[name])
    for name in frame.columns:
        if name.startswith(("value.", "constraint.", "score.", "seconds")):
            frame[name] = frame[name].astype("float64")
        elif name.startswith("param.") and frame[name].dtype == object:
            frame[name] = _one_kind(frame[name])
    return frame


_FIRST = ("number", "state", "feasible")
_GROUPS = ("value.", "constraint.", "param.", "score.", "seconds")
_KINDS = {
    "number": "Int64", "state": "string", "feasible": "boolean", "trained": "boolean", "worker": "string",
    "retry_of": "Int64", "reason": "string", "run_id": "string",
}  # fmt: skip


def _sorted(names: list[str]) -> list[str]:
    """The other columns by what they are, each group in the order of its first appearance."""
    rest = [n for n in names if n not in _FIRST]
    place = {name: next((i for i, g in enumerate(_GROUPS) if name.startswith(g)), len(_GROUPS)) for name in rest}
    return sorted(rest, key=lambda name: place[name])


def _one_kind(column: pd.Series) -> pd.Series:
    """A column that parquet can hold: mixed choices (`auto`, 4) become text."""
    kinds = {type(v) for v in column.dropna()}
    return column if len(kinds) <= 1 else column.map(lambda v: v if v is None else str(v))


def _row(loaded: LoadedTune, trial: FrozenTrial, runs: Mapping[int, str]) -> dict[str, Any]:
    cfg, attrs = loaded.cfg, trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    row: dict[str, Any] = {
        "number": trial.number,
        "state": status(trial),
        "feasible": feasible(trial) if done else None,
    }
    values = trial.values if done else None
    row |= {f"value.{name}": v for name, v in zip(cfg.objectives, values or [None] * len(cfg.objectives), strict=True)}
    bounds = attrs.get(CONSTRAINTS) or [None] * len(cfg.constraints)
    row |= {f"constraint.{name}": v for name, v in zip(cfg.constraints, bounds, strict=False)}
    row |= {f"param.{key}": trial.params.get(key) for key in cfg.space}
    row |= {f"score.{key}": v for key, v in (attrs.get("scores") or {}).items()}
    ended, started = trial.datetime_complete, trial.datetime_start
    row["seconds"] = (ended - started).total_seconds() if ended and started else None
    row |= {f"seconds.{key}": v for key, v in (attrs.get("seconds") or {}).items()}
    return row | {
        "trained": attrs.get("trained"),
        "worker": attrs.get(WORKER),
        "retry_of": attrs.get(RETRY_OF),
        "reason": reason(trial),
        RUN_ID: attrs.get(RUN_ID) or runs.get(trial.number),
        "started": started,
        "ended": ended,
    }


def reason(trial: FrozenTrial) -> str | None:
    """Why a trial has no result, in words; None where there is nothing to say."""
    attrs = trial.user_attrs
    if STOPPED in attrs:
        return "its worker was asked to leave"
    return attrs.get(FAILURE) or attrs.get(LOST) or (str(attrs["pruned"]) if attrs.get("pruned") else None)


def write_trials(loaded: LoadedTune, study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """Write the table as it is now to `trials.parquet` and `trials.csv` in the tune folder; returns it."""
    frame = trials_frame(loaded, study, runs)
    folder: Path = loaded.folder
    write_atomically(folder / FILES[0], lambda handle: frame.to_parquet(handle, engine="pyarrow", index=False))
    text = io.StringIO()
    frame.to_csv(text, index=False)
    write_bytes(folder / FILES[1], text.getvalue().encode("utf-8"))
    return frame
