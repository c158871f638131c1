"""Turns a command line of `harness.tune` into a checked search over a study: `tune=NAME`, `tune.KEY=VALUE`, the rest is the
study's as `harness.run` takes it. What can be wrong is found before anything is tried: one clear line each.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from optuna.trial import FixedTrial

from harness.config.best import key_of
from harness.config.compose import flatten, leaves
from harness.config.load import Loaded, load_draft
from harness.config.messages import nearest_key
from harness.config.registry import build_options
from harness.config.rows import rows_of
from harness.config.schema import is_plain, need
from harness.config.trees import plain
from harness.errors import UserError, nearest
from harness.metrics.base import columns_of
from harness.search.loaded import ELSEWHERE, LoadedTune
from harness.search.schema import DimensionConfig, JudgedConfig, TuneConfig, literal, overrides_of, suggest_one, token
from harness.search.storage import checked_url
from harness.search.trial import COSTS, FACTS, TRUTH, known_columns
from harness.study.cells import data_cell, make_cells
from harness.study.check import check_study
from harness.study.session import Session
from harness.tracking.uri import redact
from harness.training.seeds import step_generator

#: Sections and keys that a trial sets itself, or that change how it is judged and not what it is.
_FIXED = (*ELSEWHERE, "only_tasks", "judge", "metrics", "study")
_FREE = ("study.temperatures", "study.sampling_seed")


def load_tune(arguments: list[str], config_dirs: list[Path] | None = None, check: bool = True) -> LoadedTune:
    """Compose and check a search; raises `UserError` before anything is tried.

    Without `check`, what needs the data (budgets, what a method accepts) is left unchecked: for showing a configuration.
    """
    folders = list(config_dirs or [])
    base_args = [a for a in arguments if re.match(r"[+~]*tune(\.|=|@|$)", a) is None]
    draft = load_draft(arguments, folders, ("tune",))
    base = draft.loaded()
    cfg = base.cfg.tune
    if cfg.storage:
        checked_url(cfg.storage)  # before the data are read
    cfg.method = _row(cfg, base)
    _full_keys(cfg, set(leaves(base.tree)))
    command = " ".join(["python -m harness.tune", *map(redact, arguments)])
    loaded = LoadedTune(cfg, base_args, folders, draft, base, _trial_overrides(cfg, base, base_args), command)
    check_config(loaded)  # completes objectives, constraints and the pruner
    if check:
        check_possible(loaded)
    return loaded


# ---- what it means in this study --------------------------------------------------------------------------------------
def _row(cfg: TuneConfig, base: Loaded) -> str:
    """METHOD/SAMPLER of what is searched."""
    known: dict[str, str] = {}
    for method, labels in rows_of(base.tree["methods"]).items():
        known |= {method: f"{method}/{labels[0]}"} | {f"{method}/{label}": f"{method}/{label}" for label in labels}
    name = cfg.method or next((name for name in cfg.candidates if name in known), "")
    if not name:
        raise UserError(f"tune.method is empty: name what is searched, one of {', '.join(known)}")
    if name not in known:
        what = "sampler of this method" if name.partition("/")[0] in known else "method of this study"
        raise UserError(f"tune.method={name}: is no {what}{nearest(name, known)}")
    return known[name]


def _full_keys(cfg: TuneConfig, known: set[str]) -> None:
    """Write the space's keys in full; leave out optional ones that are not `known`, and all conditions on them."""
    full: dict[str, DimensionConfig] = {}
    for key, d in cfg.space.items():
        if cfg.in_full(key) in full:
            raise UserError(f"tune.space: {key} and an earlier dimension set the same key; keep one of them")
        full[cfg.in_full(key)] = d
    cfg.space = {key: d for key, d in full.items() if key in known or not d.optional}
    for d in cfg.space.values():
        conditions = {cfg.in_full(key): wanted for key, wanted in d.when.items()}
        d.when = {key: wanted for key, wanted in conditions.items() if key in cfg.space or key not in full}


def _trial_overrides(cfg: TuneConfig, base: Loaded, base_args: list[str]) -> list[str]:
    """What holds in trials alone: `tune.base`, but for keys that the command line sets, and fewer steps."""
    given = set(map(key_of, base_args))
    kept = [o for o in map(cfg.in_full, cfg.base) if key_of(o) not in given]
    steps = max(1, round(base.cfg.scale.steps * cfg.steps))
    return [*kept, *([f"scale.steps={steps}"] if cfg.steps != 1.0 else [])]


# ---- what cannot be meant ---------------------------------------------------------------------------------------------
def check_config(loaded: LoadedTune) -> None:
    """Raise `UserError` for the first thing that cannot be meant; fills in kinds, columns and directions."""
    cfg, base = loaded.cfg, loaded.base
    need(is_plain(cfg.name), "tune.name", cfg.name, "names a folder; use letters, digits, '.', '_' and '-'")
    _check_seeds(cfg)
    _check_space(cfg, base)
    metrics = [build_options(node, f"metrics.{name}") for name, node in base.tree["metrics"].items()]
    columns = columns_of([cls(options) for cls, options in metrics])
    _check_judged(cfg, known_columns(columns), next((c.name for c in columns if c.headline), ""))
    _check_pruner(loaded, {c.name for c in columns})


def _check_seeds(cfg: TuneConfig) -> None:
    seeds, screen = set(cfg.confirm.seeds), set(cfg.confirm.screen)
    for key, given in (("seeds", seeds), ("screen", screen)):
        reason = f"must be fresh; {cfg.seed} is the seed of the trials (tune.seed)"
        need(cfg.seed not in given, f"tune.confirm.{key}", sorted(given), reason)
    reason = "must share no seed with tune.confirm.seeds: it chooses, they judge"
    need(not screen & seeds, "tune.confirm.screen", sorted(screen), reason)


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
        if key.startswith("methods.") and not cfg.is_own(key):
            raise UserError(f"{where}: no trial of {cfg.method} depends on it; take it out")
        _check_dimension(where, d, values[key])
        for other, wanted in d.when.items():
            hint = "; put it before this one" if other in cfg.space else nearest(other, earlier)
            if other not in earlier:
                raise UserError(f"{where}.when: {other} is no earlier dimension{hint}")
            _check_condition(f"{where}.when: {other}", earlier[other], wanted)
        earlier[key] = d


def _check_dimension(where: str, d: DimensionConfig, value: Any) -> None:
    """The range or the choices by themselves; fills in the kind, and whether the key takes a list."""
    d.as_list = isinstance(value, list) and not any(isinstance(c, list) for c in d.choices)
    value = value[0] if d.as_list and value else value
    if not d.kind and not d.choices and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where}: its value is {value}; say kind: int or float with low and high, or give choices")
    d.kind = d.kind or ("categorical" if d.choices else "int" if isinstance(value, int) else "float")
    if d.kind == "categorical":
        if d.low is not None or d.high is not None or d.log or d.step is not None:
            raise UserError(f"{where}: kind categorical has choices, and no low, high, log or step")
        if len(set(map(literal, d.choices))) < max(2, len(d.choices)):
            raise UserError(f"{where}: needs two different choices or more; it has {d.choices}")
    elif d.choices:
        raise UserError(f"{where}: choices are of kind categorical; drop them or the kind {d.kind}")
    elif d.low is None or d.high is None:
        raise UserError(f"{where}: a dimension of kind {d.kind} needs low and high")
    else:
        _check_range(where, d, d.low, d.high)


def _check_range(where: str, d: DimensionConfig, low: float, high: float) -> None:
    if d.kind == "int" and any(v != round(v) for v in (low, high, d.step or 1)):
        raise UserError(f"{where}: low, high and step of kind int are whole numbers")
    if low >= high or (d.step or 0) > high - low:
        step = f" in steps of {d.step:g}" if d.step else ""
        raise UserError(f"{where}: there is nothing to choose from {low:g} to {high:g}{step}; widen the range")
    try:
        suggest_one(FixedTrial({where: low}), where, d)
    except ValueError as error:  # what Optuna does not take, such as log together with step
        raise UserError(f"{where}: {error}") from error


def _check_condition(what: str, d: DimensionConfig, wanted: list[Any]) -> None:
    """A dimension that others depend on may have the values that they ask for; one of kind float has none exactly."""
    if not wanted:
        raise UserError(f"{what} is asked for without a value")
    for value in wanted:
        whole = d.kind == "int" and type(value) is int and d.ends[0] <= value <= d.ends[1]
        if value not in d.choices and not whole:
            raise UserError(f"{what} never is {value}{nearest(str(value), map(str, d.choices))}")


# ---- objectives and constraints ---------------------------------------------------------------------------------------
def _check_judged(cfg: TuneConfig, columns: dict[str, str], headline: str) -> None:
    """Columns, directions and limits; fills them in, and leaves out optional constraints without a column."""
    need(len(cfg.objectives) > 0, "tune.objectives", "{}", "names nothing that is to be better; give one at least")
    for name, o in cfg.objectives.items():
        o.column = o.column or headline
        _check_column(f"tune.objectives.{name}", o, columns)
        o.direction = o.direction or columns[o.column]
        _need_of_data(f"tune.objectives.{name}.direction=data", o, o.direction == "data")
    cfg.constraints = {name: c for name, c in cfg.constraints.items() if c.column in columns or not c.optional}
    for name, c in cfg.constraints.items():
        where = f"tune.constraints.{name}"
        _check_column(where, c, columns)
        if c.min is None and c.max is None and c.within is None:
            raise UserError(f"{where}: limits nothing; give max, min or within")
        if c.min is not None and c.max is not None and c.min > c.max:
            raise UserError(f"{where}: nothing satisfies min {c.min:g} together with max {c.max:g}")
        _need_of_data(f"{where}.within", c, c.within is not None)


def _check_column(where: str, e: JudgedConfig, columns: dict[str, str]) -> None:
    need(e.column in columns, f"{where}.column", e.column, f"is no column of this study{nearest(e.column, columns)}")


def _need_of_data(where: str, e: JudgedConfig, wanted: bool) -> None:
    if wanted and e.column in (*COSTS, *FACTS, *TRUTH):
        raise UserError(f"{where}: the data have no {e.column} to compare with; give limits instead")


def _check_pruner(loaded: LoadedTune, metric_columns: set[str]) -> None:
    """Turns the pruner off where nothing can be pruned, and says so."""
    cfg, p = loaded.cfg, loaded.cfg.pruner
    o = next(iter(cfg.objectives.values()))
    if p.kind != "none" and (len(cfg.objectives) > 1 or loaded.samples_only):
        why = "all share their weights" if loaded.samples_only else f"there are {len(cfg.objectives)} objectives"
        loaded.notes.append(f"no trial is pruned (tune.pruner.kind={p.kind}): {why}")
        p.kind = "none"
    elif p.kind != "none" and p.signal == "score":
        reason = f"{o.column} is not scored on samples alone; use tune.pruner.signal=bound or kind=none"
        need(o.column in metric_columns and o.direction != "data", "tune.pruner.signal", p.signal, reason)
    elif p.kind != "none":
        reason = "the bound is minimised and the objective maximised; use signal=score"
        need(o.direction != "maximize", "tune.pruner.signal", p.signal, reason)


# ---- with the data ----------------------------------------------------------------------------------------------------
def check_possible(loaded: LoadedTune) -> None:
    """Raise `UserError` for what the study or the method refuses: a budget, a value, a dimension without effect, ..."""
    cfg, session = loaded.cfg, loaded.context.session
    for e in cfg.judged:
        if e.column in TRUTH and session.data.task is None:
            raise UserError(f"{e.column} needs data whose law is known; {session.data.name} has none")
    _check_row(loaded, session)
    check_study(session, make_cells(session), data_cell(session))
    for key, d in cfg.space.items():
        for value in d.choices or map(int if d.kind == "int" else float, d.ends):
            try:
                _check_value(loaded, key, value)
            except UserError as error:
                raise UserError(f"tune.space.{key} at {value}: {error}") from error
    if cfg.pruner.kind != "none" and cfg.pruner.signal == "bound":
        _check_bound(session, cfg.row[0])


def _check_row(loaded: LoadedTune, session: Session) -> None:
    """What is searched can be built, is compared with others, and meets the budgets."""
    method, label = loaded.cfg.row
    sampler = session.sampler(session.build(method), method, label)
    role, met = sampler.role or sampler.method.role, sampler.budgets(tuple(loaded.cfg.budgets))
    reason = f"is a {role} of the study, which has nothing to be tuned"
    need(role in ("method", "probe"), "tune.method", loaded.cfg.method, reason)
    for nfe in loaded.cfg.budgets:
        need(nfe in met, "nfe", nfe, f"cannot be had of {sampler.title}, whose budgets are {list(met)}")
        sampler.check_budget(nfe)


def _check_value(loaded: LoadedTune, key: str, value: Any) -> None:
    """The configuration takes the value, all others at their defaults."""
    params = _conditions(loaded, key) | {key: value}
    if not key.startswith("methods."):
        tokens = {name: token(wanted) for name, wanted in params.items()}
        loaded.trial_tree(overrides_of(tokens, loaded.cfg), "trials/default")
        return
    # Composing a configuration takes a hundred times as long as building one method.
    tree = OmegaConf.create(loaded.context.tree)
    for name, wanted in params.items():
        OmegaConf.update(tree, name, [wanted] if loaded.cfg.space[name].as_list else wanted)
    session = copy.copy(loaded.context.session)
    session.tree = plain(tree)
    _check_row(loaded, session)


def _conditions(loaded: LoadedTune, key: str) -> dict[str, Any]:
    """Values of earlier dimensions with which this one exists."""
    params: dict[str, Any] = {}
    for other, wanted in loaded.cfg.space[key].when.items():
        params |= _conditions(loaded, other) | {other: wanted[0]}
    return params


def _check_bound(session: Session, name: str) -> None:
    """Raise `UserError` unless the method has a bound to prune on."""
    method = session.build(name).eval()
    x_1L = torch.zeros((1, session.problem.length), dtype=torch.int64)
    if method.bound(x_1L, step_generator("cpu", 0)) is None:
        reason = f"{method.title} has no bound; use tune.pruner.signal=score or kind=none"
        raise UserError(f"tune.pruner.signal=bound: {reason}")
