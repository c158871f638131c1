"""What can be wrong with a search before any data are read: one clear line each, with the nearest valid choice."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from harness.config.compose import flatten, leaves
from harness.config.load import Loaded
from harness.config.messages import nearest_key
from harness.config.rows import is_plain
from harness.config.schema import need
from harness.errors import UserError, nearest
from harness.search.loaded import LoadedTune
from harness.search.objective import COSTS, FACTS, TRUTH, known_columns
from harness.search.schema import DimensionConfig, JudgedConfig, TuneConfig
from harness.search.space import token
from harness.study.session import Session

HEAT = "study.temperatures"
#: Sections and keys that a trial sets itself, or that change how it is judged and not what it is.
_FIXED = ("only", "only_tasks", "plan", "runs_dir", "cache_dir", "tracking", "judge", "metrics", "study")
_FREE = (HEAT, "study.sampling_seed")


def check_config(loaded: LoadedTune) -> None:
    """Raise `UserError` for the first thing that cannot be meant; fills in kinds, columns and directions."""
    cfg, base = loaded.cfg, loaded.base
    need(is_plain(cfg.name), "tune.name", cfg.name, "names a folder; use letters, digits, '.', '_' and '-'")
    for o in cfg.base:
        need("=" in o, "tune.base", o, "is no override; write key=value")
    _check_seeds(cfg)
    _check_space(cfg, base)
    session = Session(base.tree)
    columns = known_columns(session.columns)
    headline = next((c.name for c in session.columns if c.headline), "")
    _complete(cfg, columns, headline)
    _check_judged(cfg, columns)
    _check_pruner(loaded, {c.name for c in session.columns})


def _check_seeds(cfg: TuneConfig) -> None:
    for key, seeds in (("seeds", cfg.confirm.seeds), ("screen", cfg.confirm.screen)):
        reason = f"must be fresh; {cfg.seed} is the seed of the trials (tune.seed)"
        need(cfg.seed not in seeds, f"tune.confirm.{key}", seeds, reason)
    screen = cfg.confirm.screen
    reason = "must share no seed with tune.confirm.seeds: it chooses, they judge"
    need(not set(screen) & set(cfg.confirm.seeds), "tune.confirm.screen", screen, reason)


# ---- the space --------------------------------------------------------------------------------------------------------
def _check_space(cfg: TuneConfig, base: Loaded) -> None:
    need(len(cfg.space) > 0, "tune.space", "{}", "has no dimension; nothing would be searched")
    known, values = leaves(base.tree), flatten(base.tree)
    earlier: dict[str, DimensionConfig] = {}
    for key, d in cfg.space.items():
        where = f"tune.space.{key}"
        if key not in known:
            raise UserError(f"{where}: the study has no such key{nearest_key(key, known, {})}")
        if key not in values:
            raise UserError(f"{where}: is a section of the configuration; choose one of its keys")
        if key not in _FREE and key.split(".")[0] in _FIXED:
            raise UserError(f"{where}: is the same in all trials, or they could not be compared; take it out")
        _check_dimension(where, d, values[key])
        for other, wanted in d.when.items():
            _check_condition(where, other, wanted, cfg.space, earlier)
        earlier[key] = d


def _check_dimension(where: str, d: DimensionConfig, value: Any) -> None:
    """The range or the choices by themselves; fills in the kind."""
    if isinstance(value, list) and not d.as_list and not any(isinstance(c, list) for c in d.choices):
        raise UserError(f"{where}: takes a list; add as_list: true, or give lists as choices")
    if d.as_list and not isinstance(value, list):
        raise UserError(f"{where}: as_list is for keys that take a list; this one's value is {value}")
    d.kind = d.kind or _kind_of(where, d, value[0] if d.as_list and value else value)
    if d.kind == "categorical":
        _check_choices(where, d)
        return
    if d.choices:
        raise UserError(f"{where}: choices are of kind categorical; drop them or the kind {d.kind}")
    if d.low is None or d.high is None:
        raise UserError(f"{where}: a dimension of kind {d.kind} needs low and high")
    low, high = d.ends
    if low >= high:
        raise UserError(f"{where}: the range from {low:g} to {high:g} is empty; low must be below high")
    if d.log and low <= 0:
        raise UserError(f"{where}: log needs low above 0, and it is {low:g}")
    if d.step is not None and (d.log or d.step > high - low):
        reason = "goes with log" if d.log else "fits into the range"
        raise UserError(f"{where}.step={d.step:g}: no step {reason}; drop it or choose one above 0 up to high - low")
    if d.kind == "int" and any(v != round(v) for v in (low, high, d.step or 1)):
        raise UserError(f"{where}: low, high and step of kind int are whole numbers")


def _kind_of(where: str, d: DimensionConfig, value: Any) -> str:
    if d.choices:
        return "categorical"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: its value is {value}; say kind: int or float with low and high, or give choices")
    return "int" if isinstance(value, int) else "float"


def _check_choices(where: str, d: DimensionConfig) -> None:
    if d.low is not None or d.high is not None or d.log or d.step is not None:
        raise UserError(f"{where}: kind categorical has choices, and no low, high, log or step")
    plain = all(_is_plain_choice(c) for c in d.choices)
    if not plain:
        raise UserError(f"{where}: a choice is a number, a word, true, false, null, or a list of such")
    # By value: true is 1 to a storage.
    if len(d.choices) < 2 or len(set(map(token, d.choices))) < len(d.choices):
        raise UserError(f"{where}: needs two different choices or more; it has {d.choices}")


def _is_plain_choice(choice: Any) -> bool:
    if isinstance(choice, list):
        return all(_is_plain_choice(c) for c in choice)
    return choice is None or isinstance(choice, bool | int | float | str)


def _check_condition(
    where: str, other: str, wanted: list[Any], space: dict[str, DimensionConfig], earlier: dict[str, DimensionConfig]
) -> None:
    if other not in earlier:
        hint = "; put it before this one" if other in space else nearest(other, earlier)
        raise UserError(f"{where}.when: {other} is no earlier dimension{hint}")
    if not wanted:
        raise UserError(f"{where}.when: names no value of {other}")
    d = earlier[other]
    for value in wanted:
        if d.kind != "categorical":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if d.kind == "float" or not number or not d.ends[0] <= value <= d.ends[1]:
                raise UserError(f"{where}.when: {other} is a {d.kind} that does not take exactly {value}; use choices")
        elif value not in d.choices:
            raise UserError(f"{where}.when: {other} never is {value}{nearest(str(value), map(str, d.choices))}")


# ---- objectives and constraints ---------------------------------------------------------------------------------------
def _complete(cfg: TuneConfig, columns: dict[str, str], headline: str) -> None:
    """Fill in columns and directions; leave out optional constraints on columns that the study does not have."""
    need(len(cfg.objectives) > 0, "tune.objectives", "{}", "names nothing that is to be better; give one at least")
    for o in cfg.objectives.values():
        o.column = o.column or headline
        o.direction = o.direction or columns.get(o.column, "")
    kept = {name: c for name, c in cfg.constraints.items() if c.column in columns or not c.optional}
    cfg.constraints = kept


def _check_judged(cfg: TuneConfig, columns: dict[str, str]) -> None:
    entries: dict[str, JudgedConfig] = {f"tune.objectives.{name}": o for name, o in cfg.objectives.items()}
    entries |= {f"tune.constraints.{name}": c for name, c in cfg.constraints.items()}
    for where, e in entries.items():
        reason = f"is no column of this study{nearest(e.column, columns)}"
        need(e.column in columns, f"{where}.column", e.column, reason)
        if cfg.nfe and e.nfe not in cfg.nfe:
            raise UserError(f"{where}.nfe={e.nfe}: is not among tune.nfe={list(cfg.nfe)}; add it, or leave that empty")
        free = e.temperature is None or HEAT not in cfg.space
        need(free, f"{where}.temperature", e.temperature, f"cannot be fixed while {HEAT} is searched; drop one")
    seen: dict[tuple[Any, ...], str] = {}
    for name, o in cfg.objectives.items():
        _need_of_data(f"tune.objectives.{name}.direction=data", o, o.direction == "data")
        other = seen.setdefault(dataclasses.astuple(o), name)
        if other != name:
            raise UserError(f"tune.objectives.{name}: is the same as {other}; keep one of them")
    _check_constraints(cfg)


def _need_of_data(where: str, e: JudgedConfig, wanted: bool) -> None:
    if wanted and e.column in (*COSTS, *FACTS, *TRUTH):
        raise UserError(f"{where}: the data have no {e.column} to compare with; give limits instead")


def _check_constraints(cfg: TuneConfig) -> None:
    for name, c in cfg.constraints.items():
        where = f"tune.constraints.{name}"
        if c.min is None and c.max is None and c.within is None:
            raise UserError(f"{where}: limits nothing; give max, min or within")
        _need_of_data(f"{where}.within", c, c.within is not None)
    limited: dict[tuple[Any, ...], dict[str, tuple[float, float]]] = {}
    for name, c in cfg.constraints.items():
        there = limited.setdefault((c.column, c.nfe, c.temperature), {})
        there[name] = (-math.inf if c.min is None else c.min, math.inf if c.max is None else c.max)
        low, high = max(v[0] for v in there.values()), min(v[1] for v in there.values())
        if low > high:
            others = f" together with {', '.join(n for n in there if n != name)}" if len(there) > 1 else ""
            raise UserError(
                f"tune.constraints.{name}{others}: {c.column} cannot be at least {low:g} and at most {high:g}; "
                "nothing satisfies that"
            )


def _check_pruner(loaded: LoadedTune, metric_columns: set[str]) -> None:
    cfg, p = loaded.cfg, loaded.cfg.pruner
    if p.kind == "none":
        return
    if len(cfg.objectives) > 1:
        loaded.notes.append(
            f"no trial is pruned (tune.pruner.kind={p.kind}): there are {len(cfg.objectives)} objectives"
        )
        p.kind = "none"
        return
    o = next(iter(cfg.objectives.values()))
    if p.signal == "score" and (o.column not in metric_columns or o.direction == "data"):
        raise UserError(
            f"tune.pruner.signal=score: {o.column} is not scored on samples alone; use signal=bound or kind=none"
        )
    if p.signal == "bound" and o.direction == "maximize":
        raise UserError(
            "tune.pruner.signal=bound: the bound is minimised and the objective maximised; use signal=score"
        )
