"""What a trial is judged by: objectives and constraints read from the rows that the study makes of a method.

A row is what `harness.study.rows` makes of one budget and temperature of a method, and a line of results.parquet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.errors import UserError
from harness.metrics.base import Column
from harness.search.loaded import Context
from harness.search.schema import ConstraintConfig, JudgedConfig, ObjectiveConfig, TuneConfig
from harness.store import read_json, write_json
from harness.study import steps
from harness.study.cells import data_cell
from harness.study.session import Session
from harness.study.steps import Progress

#: Columns that are measured while sampling, and those that are measured on the trained model; lower is better.
COSTS = ("seconds_per_seq", "flops_per_seq", "equivalent_nfe")
FACTS = ("nelbo_nats_per_token", "bits_per_token", "params", "train_flops")
#: Distances from the data's own law, where that is known.
TRUTH = ("bound_excess_nats", "reverse_nats", "path_nats")


def known_columns(columns: Sequence[Column]) -> dict[str, str]:
    """Direction by name of all columns that can be asked for: the metrics' own, costs and facts."""
    aims = {"lower": "minimize", "higher": "maximize", "data": "data"}
    return {c.name: aims[c.better] for c in columns} | dict.fromkeys((*COSTS, *FACTS, *TRUTH), "minimize")


def needs_facts(cfg: TuneConfig) -> bool:
    """Whether something is asked for that is measured on the model, which takes longer than a small set of samples."""
    return any(e.column in (*FACTS, *TRUTH) for e in cfg.judged)


def needs_data(cfg: TuneConfig) -> bool:
    """Whether the data's own values are asked for."""
    aims = any(o.direction == "data" for o in cfg.objectives.values())
    return aims or any(c.within is not None for c in cfg.constraints.values())


def evaluate(context: Context, rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float], dict[str, float]]:
    """(objectives, constraints, scores) of the searched method's rows.

    A constraint is at most 0 where it is met: what it is broken by, in the unit of its column. Scores are all numbers of
    the rows as `<column>@<nfe>`. Raises `UserError` for an objective without a value, which a trial cannot be told with.
    """
    cfg = context.cfg
    own = [row for row in rows if (row["method"], row["sampler"]) == cfg.row]
    data = data_values(context) if needs_data(cfg) else {}
    values = [_objective(name, o, own, data) for name, o in cfg.objectives.items()]
    constraints = [
        _excess(c, _number(_row(own, c).get(c.column)), data.get(c.column, math.nan)) for c in cfg.constraints.values()
    ]
    return values, constraints, _scores(own, set(known_columns(context.session.columns)))


def _objective(name: str, o: ObjectiveConfig, rows: list[dict[str, Any]], data: dict[str, float]) -> float:
    row = _row(rows, o)
    value = _number(row.get(o.column))
    if not math.isfinite(value):
        kin = [
            k for k in row if k.startswith(o.column[:3]) and not k.endswith("_se") and math.isfinite(_number(row[k]))
        ]
        hint = f"; tune.objectives.{name}.column={kin[0]} has a value" if kin else ""
        raise UserError(f"{o.column} at NFE {o.nfe} is {value}, with which no trial can be compared{hint}")
    return abs(value - data[o.column]) if o.direction == "data" else value


def _excess(c: ConstraintConfig, value: float, of_data: float) -> float:
    """By how much the value lies outside of its limits; at most 0 inside."""
    low, high = limits(c, of_data)
    if math.isnan(value):
        return math.inf
    return max(low - value if low > -math.inf else -math.inf, value - high if high < math.inf else -math.inf)


def limits(c: ConstraintConfig, of_data: float) -> tuple[float, float]:
    """The interval that the constraint allows, given the data's own value (not a number: not known)."""
    low = -math.inf if c.min is None else c.min
    high = math.inf if c.max is None else c.max
    if c.within is not None and not math.isnan(of_data):
        margin = c.within * abs(of_data)
        low, high = max(low, of_data - margin), min(high, of_data + margin)
    return low, high


def _row(rows: list[dict[str, Any]], e: JudgedConfig) -> dict[str, Any]:
    for row in rows:
        if row["nfe"] == e.nfe:
            return row
    raise UserError(f"there is no row at NFE {e.nfe} to read {e.column} from")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _scores(rows: list[dict[str, Any]], columns: set[str]) -> dict[str, float]:
    numbers = [(row["nfe"], k, _number(v)) for row in rows for k, v in row.items() if k.removesuffix("_se") in columns]
    return {f"{name}@{nfe}": value for nfe, name, value in numbers if not math.isnan(value)}


# ---- the data's own values --------------------------------------------------------------------------------------------
def data_values(context: Context, progress: Progress = lambda text, done, total: None) -> dict[str, float]:
    """Scores of held-out data in the place of samples, by column; made once and kept in the search's folder.

    Raises `UserError` for limits that leave no value, given the data's own.
    """
    if not context.of_data:
        path = context.folder / f"data-{context.identity}.json"
        if not path.exists():
            write_json(path, _score_data(context.session, progress))
        values = read_json(path)
        for name, c in context.cfg.constraints.items():
            _check_limits(f"tune.constraints.{name}", c, values.get(c.column, math.nan))
        context.of_data.update(values)
    return context.of_data


def _score_data(session: Session, progress: Progress) -> dict[str, float]:
    cell = data_cell(session)
    steps.score_cell(session, cell, progress)
    protocol = steps.prepare_judge(session, progress)
    return read_json(cell.scores(session, cell.parts[0], protocol))["values"]


def _check_limits(where: str, c: ConstraintConfig, of_data: float) -> None:
    low, high = limits(c, of_data)
    if low > high:
        reason = f"nothing is within {c.within:g} of the data's {c.column}, {of_data:.4g}, and also within min and max"
        raise UserError(f"{where}: {reason}")
