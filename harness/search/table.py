"""The trials of a search as a table: one row a trial, whatever became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from harness.search.loaded import LoadedTune
from harness.search.trials import ASKED_BY, CONSTRAINTS, RETRY_OF, RUN_ID, all_trials, feasible, reason, status
from harness.store import write_atomically, write_bytes

FILES = ("trials.parquet", "trials.csv")
_KINDS = {
    "number": "Int64", "state": "string", "feasible": "boolean", "trained": "boolean", "asked_by": "string",
    "retry_of": "Int64", "reason": "string", "run_id": "string",
}  # fmt: skip


def trials_frame(loaded: LoadedTune, study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """All trials by number; what is not known is missing.

    Columns: `number`, `state` (complete, pruned, failed, lost, running, waiting), `feasible`, `value.<objective>`,
    `constraint.<name>` (met where at most 0), `param.<key>`, `score.<column>@<NFE>`, `seconds` (of the whole trial) and
    `seconds.<part>`, `trained` (whether a training step was run), `asked_by` (which command), `retry_of` (number of the
    trial that was lost), `reason`, `run_id`, `started`, `ended`. `runs` gives the runs of trials that do not know theirs.
    """
    trials = all_trials(study)
    if not trials:
        return pd.DataFrame()
    attrs = ("number", "datetime_start", "datetime_complete", "duration", "params")
    raw = study.trials_dataframe(attrs=attrs).rename(columns=lambda name: name.replace("params_", "param.", 1))
    tail = {key: [t.user_attrs.get(key) for t in trials] for key in ("trained", ASKED_BY, RETRY_OF)}
    tail["reason"] = [reason(t) for t in trials]
    tail[RUN_ID] = [t.user_attrs.get(RUN_ID) or (runs or {}).get(t.number) for t in trials]
    times = pd.DataFrame({"started": raw["datetime_start"], "ended": raw["datetime_complete"]})
    frame = pd.concat([*_values(loaded, trials, raw), pd.DataFrame(tail), times], axis=1)
    return frame.astype({name: kind for name, kind in _KINDS.items() if name in frame})


def _values(loaded: LoadedTune, trials: list[FrozenTrial], raw: pd.DataFrame) -> list[pd.DataFrame]:
    """What each trial is and came to, group by group."""
    cfg = loaded.cfg
    # Optuna gives a pruned trial the last value that it reported, which is no objective.
    values = [t.values if t.state == TrialState.COMPLETE else [] for t in trials]
    broken = [t.user_attrs.get(CONSTRAINTS) or [] for t in trials]
    able = [feasible(t) if t.state == TrialState.COMPLETE else None for t in trials]
    return [
        pd.DataFrame({"number": raw["number"], "state": [status(t) for t in trials], "feasible": able}),
        _numbers("value.", [dict(zip(cfg.objectives, row, strict=False)) for row in values], list(cfg.objectives)),
        _numbers(
            "constraint.", [dict(zip(cfg.constraints, row, strict=False)) for row in broken], list(cfg.constraints)
        ),
        pd.DataFrame({f"param.{key}": _one_kind(raw, f"param.{key}") for key in cfg.space}, index=raw.index),
        _numbers("score.", [t.user_attrs.get("scores") or {} for t in trials]),
        pd.DataFrame({"seconds": pd.to_timedelta(raw["duration"]).dt.total_seconds()}),
        _numbers("seconds.", [t.user_attrs.get("seconds") or {} for t in trials]),
    ]


def _numbers(prefix: str, rows: list[dict[str, float]], names: list[str] | None = None) -> pd.DataFrame:
    """Numbers by name as columns: those of `names`, or all that there are."""
    return pd.DataFrame(rows, columns=names).astype("float64").add_prefix(prefix)


def _one_kind(raw: pd.DataFrame, name: str) -> pd.Series | None:
    """A column that parquet can hold: mixed choices (`auto`, 4) become text."""
    if name not in raw:
        return None
    kinds = {type(v) for v in raw[name].dropna()}
    return raw[name] if len(kinds) <= 1 else raw[name].map(lambda v: v if v is None else str(v))


def write_trials(loaded: LoadedTune, study: optuna.Study, runs: Mapping[int, str] | None = None) -> pd.DataFrame:
    """Write the table as it is now to `trials.parquet` and `trials.csv` in the tune folder; returns it."""
    frame = trials_frame(loaded, study, runs)
    folder: Path = loaded.folder
    write_atomically(folder / FILES[0], lambda handle: frame.to_parquet(handle, engine="pyarrow", index=False))
    text = io.StringIO()
    frame.to_csv(text, index=False)
    write_bytes(folder / FILES[1], text.getvalue().encode("utf-8"))
    return frame
