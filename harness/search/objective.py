"""What a trial is judged by: objectives and constraints read from the rows that the study makes of a method.

A row is what `harness.study.rows` makes of one budget and temperature of a method, and a line of results.parquet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.errors import UserError
from harness.jobs.locks import waiting_for
from harness.metrics.base import Column
from harness.search.context import Context
from harness.search.schema import ConstraintConfig, JudgedConfig, ObjectiveConfig, TuneConfig
from harness.store import read_json, write_json
from harness.study import steps
from harness.study.cells import DATA_ROW, data_cell
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
    constraints = [_excess(c, _value(own, c), data.get(c.column, math.nan)) for c in cfg.constraints.values()]
    return values, constraints, _scores(own, set(known_columns(context.session.columns)))


def _objective(name: str, o: ObjectiveConfig, rows: list[dict[str, Any]], data: dict[str, float]) -> float:
    value = _value(rows, o)
    if not math.isfinite(value):
        others = [k for k, v in _row(rows, o).items() if k.startswith(o.column[:3]) and k != o.column]
        finite = [k for k in others if not k.endswith("_se") and math.isfinite(_number(_row(rows, o)[k]))]
        hint = f"; tune.objectives.{name}.column={finite[0]} has a value" if finite else ""
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
    """The row of this budget and temperature; without a temperature, that at 1 or the first one."""
    there = [row for row in rows if row["nfe"] == e.nfe]
    wanted = e.temperature
    if wanted is None and there:
        heats = [float(row["temperature"]) for row in there]
        wanted = 1.0 if 1.0 in heats else heats[0]
    found = next((row for row in there if float(row["temperature"]) == wanted), None)
    if found is None:
        heat = "" if wanted is None else f" and temperature {wanted:g}"
        raise UserError(f"there is no row at NFE {e.nfe}{heat} to read {e.column} from")
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _value(rows: list[dict[str, Any]], e: JudgedConfig) -> float:
    return _number(_row(rows, e).get(e.column))


def _scores(rows: list[dict[str, Any]], columns: set[str]) -> dict[str, float]:
    """Numbers by `<column>@<nfe>`; of further temperatures than the first (or 1) as `<column>@<nfe>T<temperature>`."""
    scores: dict[str, float] = {}
    for row in rows:
        main = _row(rows, JudgedConfig(nfe=row["nfe"])) is row
        place = f"{row['nfe']}" if main else f"{row['nfe']}T{float(row['temperature']):g}"
        for name, value in row.items():
            if name.removesuffix("_se") in columns and not math.isnan(_number(value)):
                scores[f"{name}@{place}"] = float(value)
    return scores


# ---- the data's own values --------------------------------------------------------------------------------------------
def data_values(context: Context, progress: Progress | None = None) -> dict[str, float]:
    """Scores of held-out data in the place of samples, by column; made once and kept in the search's folder.

    Raises `UserError` for limits that leave no value, given the data's own.
    """
    if context.of_data:
        return context.of_data
    path = context.folder / "data.json"
    tell = progress or (lambda text, done, total: None)
    with waiting_for(context.folder / "data.lock", lambda: tell("waiting for the data's own scores", 0, 0)):
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        if known.get("identity") != context.identity:
            known = {"identity": context.identity, "values": _score_data(context, tell)}
            write_json(path, known)
    _check_limits(context.cfg, known["values"])
    context.of_data.update(known["values"])
    return context.of_data


def _score_data(context: Context, progress: Progress) -> dict[str, float]:
    study = context.tree["study"] | {"name": f"{context.place}/{DATA_ROW}"}
    session = Session(context.tree | {"study": study}, context.weights)
    session.adopt(context.session)
    cell = data_cell(session)
    steps.score_cell(session, cell, progress)
    context.session.adopt(session)  # the judge is ready now
    protocol = steps.prepare_judge(session, progress)
    return read_json(cell.scores(session, cell.parts[0], protocol))["values"]


def _check_limits(cfg: TuneConfig, values: dict[str, float]) -> None:
    for name, c in cfg.constraints.items():
        of_data = values.get(c.column, math.nan)
        low, high = limits(c, of_data)
        if low > high:
            other = f"at least {c.min:g}" if c.min is not None and c.min >= low else f"at most {c.max:g}"
            raise UserError(
                f"tune.constraints.{name}: nothing is within {c.within:g} of the data's {c.column}, which is "
                f"{of_data:.4g}, and also {other}"
            )
