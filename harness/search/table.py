"""The trials of a search as a table: one row a trial, whatever became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState

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
    cfg, trials = loaded.cfg, all_trials(study)
    raw = study.trials_dataframe(attrs=("number", "datetime_start", "datetime_complete", "duration", "params"))
    raw = raw.rename(columns=lambda name: name.replace("params_", "param.", 1))
    done = [t.state == TrialState.COMPLETE for t in trials]
    head = {
        "number": [t.number for t in trials],
        "state": [status(t) for t in trials],
        "feasible": [feasible(t) if d else None for t, d in zip(trials, done, strict=True)],
    }
    # Optuna gives a pruned trial the last value that it reported, which is no objective.
    values = [t.values if d else [] for t, d in zip(trials, done, strict=True)]
    groups = [
        _group("value.", [dict(zip(cfg.objectives, row, strict=False)) for row in values], cfg.objectives),
        _group("constraint.", [dict(zip(cfg.constraints, _of(t, CONSTRAINTS), strict=False)) for t in trials],
               cfg.constraints),
        pd.DataFrame({f"param.{key}": _one_kind(raw, f"param.{key}") for key in cfg.space}, index=range(len(trials))),
        _group("score.", [_of(t, "scores") for t in trials]),
    ]  # fmt: skip
    if trials:
        groups.append(pd.DataFrame({"seconds": raw["duration"].dt.total_seconds()}))
    groups.append(_group("seconds.", [_of(t, "seconds") for t in trials]))
    tail = {key: [t.user_attrs.get(key) for t in trials] for key in ("trained", ASKED_BY, RETRY_OF)}
    tail["reason"] = [reason(t) for t in trials]
    tail[RUN_ID] = [t.user_attrs.get(RUN_ID) or (runs or {}).get(t.number) for t in trials]
    times = {new: raw[old] for new, old in _TIMES.items() if old in raw}
    frame = pd.concat([pd.DataFrame(head), *groups, pd.DataFrame(tail), pd.DataFrame(times)], axis=1)
    return frame.astype({name: kind for name, kind in _KINDS.items() if name in frame})


_TIMES = {"started": "datetime_start", "ended": "datetime_complete"}


def _of(trial: optuna.trial.FrozenTrial, attribute: str) -> dict | list:
    return trial.user_attrs.get(attribute) or []


def _group(prefix: str, rows: list, names: Mapping[str, object] | None = None) -> pd.DataFrame:
    """Numbers by name as columns; those of `names` at least."""
    frame = pd.DataFrame([dict(row) for row in rows], columns=list(names) if names is not None else None)
    return frame.astype("float64").add_prefix(prefix)


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
