"""What the run of a trial shows: its scores and times as points, and its training curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from harness.errors import UserError
from harness.store import read_jsonl
from harness.tracking.base import Point
from harness.tuning.claims import status
from harness.tuning.samplers import CONSTRAINTS
from harness.tuning.space import overrides_of

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune
    from harness.tuning.trial import TrialResult


def record_of(loaded: LoadedTune, result: TrialResult) -> dict[str, Any]:
    """What a trial's run shows, as the storage keeps it too, and the curves."""
    return {
        "values": list(result.values),
        CONSTRAINTS: list(result.constraints),
        "scores": result.scores,
        "seconds": result.seconds,
        "curves": result.curves,
        "objectives": {name: o.nfe for name, o in loaded.cfg.objectives.items()},
        "constraint_names": list(loaded.cfg.constraints),
    }


def record_of_trial(loaded: LoadedTune, trial: FrozenTrial) -> dict[str, Any]:
    """The same from the storage, and the curves from the files of the weights."""
    attrs = trial.user_attrs
    return {
        # Optuna gives a pruned trial the last value that it reported, which is no objective.
        "values": list(trial.values) if trial.state == TrialState.COMPLETE else [],
        CONSTRAINTS: attrs.get(CONSTRAINTS) or [],
        "scores": attrs.get("scores") or {},
        "seconds": attrs.get("seconds") or {},
        "curves": curves_of(loaded, trial.params) if status(trial) != "lost" else [],
        "objectives": {name: o.nfe for name, o in loaded.cfg.objectives.items()},
        "constraint_names": list(loaded.cfg.constraints),
    }


def curves_of(loaded: LoadedTune, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of the training curves of a trial's weights; none where nothing was trained or the values are refused."""
    from harness.study.cells import make_cells
    from harness.study.session import Session

    try:
        tree = loaded.trial_tree(overrides_of(dict(params), loaded.cfg), "trials/curves")
        session = Session(tree, loaded.weights)
        session.adopt(loaded.session)
        return read_jsonl(make_cells(session)[0].curves)
    except UserError:
        return []


def score_points(record: Mapping[str, Any], time_ms: int) -> list[Point]:
    """Scores, objectives, constraints and times as points at `time_ms`, NFE on the step axis (0: at no one budget).

    Scores are called `<column>@<NFE>` or `<column>@<NFE>T<temperature>`; the temperature stays in the name.
    """
    found: list[tuple[str, int, float]] = []
    for key, value in (record.get("scores") or {}).items():
        column, _, rest = key.partition("@")
        nfe, _, heat = rest.partition("T")
        found.append((f"{column}_T{heat}" if heat else column, int(nfe or 0), value))
    objectives = zip((record.get("objectives") or {}).items(), record.get("values") or [], strict=False)
    found += [(f"objective.{name}", nfe, value) for (name, nfe), value in objectives]
    constraints = zip(record.get("constraint_names") or [], record.get(CONSTRAINTS) or [], strict=False)
    found += [(f"constraint.{name}", 0, value) for name, value in constraints]
    found += [(f"seconds.{name}", 0, value) for name, value in (record.get("seconds") or {}).items()]
    return [
        {"name": name, "value": float(value), "step": step, "time_ms": time_ms}
        for name, step, value in found
        if value is not None and math.isfinite(value)
    ]


#: Points of one training curve in a trial's run; all of them are in the files of its weights.
_POINTS = 40


def points(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of `curves.jsonl` as points, each curve thinned evenly to at most 40 with its last kept."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        for name, value in line["values"].items():
            point = {"name": name, "value": value, "step": line["step"], "time_ms": line["time_ms"]}
            curves.setdefault(name, []).append(point)
    kept = []
    for curve in curves.values():
        every = -(-len(curve) // _POINTS)
        kept += curve[::-1][::every][::-1]
    return kept
