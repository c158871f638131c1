"""Whether a study can run what a search asks of it: every end of the space is built once, before anything is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from harness.errors import UserError
from harness.interface import Sampler
from harness.search.loaded import LoadedTune
from harness.search.objective import TRUTH
from harness.search.space import ends_of, is_active, overrides_of, token
from harness.study.session import Session
from harness.training.seeds import step_generator

DEFAULT = "default"


def check_possible(loaded: LoadedTune) -> None:
    """Raise `UserError` for a budget that cannot be met, a value that is refused, a dimension without effect, ..."""
    cfg, session = loaded.cfg, loaded.session
    for o in cfg.judged:
        if o.column in TRUTH and session.data.task is None:
            raise UserError(f"{o.column} needs data whose law is known; {session.data.name} has none")
    session.judge.check(session.data)
    _ = session.reference  # refuses too many samples
    same = is_sampling_only(loaded)  # refuses values that cannot be
    trained = bool(session.build(cfg.row[0]).stages())
    if cfg.pruner.kind != "none" and (same or not trained):
        loaded.notes.append("no trial is pruned: none is trained, as all configurations share their weights")
    elif cfg.pruner.kind != "none" and cfg.pruner.signal == "bound":
        _check_bound(session, cfg.row[0])


def is_sampling_only(loaded: LoadedTune) -> bool:
    """Whether all configurations of the space have the same weights; every end of each dimension is built for that.

    Raises `UserError` that names the dimension and the value for what the study or the method refuses.
    """
    found: set[str] = set()
    default, idle = _matters(loaded, loaded.session), set(loaded.cfg.space)
    for key, value, session, sampler in _variants(loaded):
        _check_budgets(loaded, sampler, "" if key == DEFAULT else f"tune.space.{key} at {value}: ")
        found.add(session.weights_key(loaded.cfg.row[0], loaded.cfg.seed))
        if _matters(loaded, session) != default:
            idle.discard(key)
    if idle:
        key = next(key for key in loaded.cfg.space if key in idle)
        raise UserError(f"tune.space.{key}: no trial of {loaded.cfg.method} depends on it; take it out")
    return len(found) == 1


def _matters(loaded: LoadedTune, session: Session) -> dict[str, Any]:
    """What of a configuration a trial can depend on."""
    tree = session.tree
    study = {k: tree["study"][k] for k in ("temperatures", "sampling_seed")}
    parts = {k: tree[k] for k in ("scale", "train", "data", "tokenizer", "compute")}
    method, sampler = loaded.cfg.row
    node = tree["methods"][method]
    return parts | {"study": study, "method": node | {"samplers": node["samplers"][sampler]}}


def _variants(loaded: LoadedTune) -> Iterator[tuple[str, Any, Session, Sampler]]:
    """(key, value, session, sampler): the default, then each dimension at its ends, all others at their defaults."""
    cfg = loaded.cfg
    yield DEFAULT, None, loaded.session, _sampler(loaded, loaded.session)
    for key, d in cfg.space.items():
        for value in ends_of(d):
            params = _conditions(loaded, key) | {key: token(value)}
            try:
                session = Session(
                    loaded.trial_tree(overrides_of(params, cfg), f"trials/{DEFAULT}"), loaded.context.weights
                )
                session.adopt(loaded.session)
                sampler = _sampler(loaded, session)
            except UserError as error:
                raise UserError(f"tune.space.{key} at {value}: {error}") from error
            yield key, value, session, sampler


def _sampler(loaded: LoadedTune, session: Session) -> Sampler:
    method, label = loaded.cfg.row
    return session.sampler(session.build(method), method, label)


def _conditions(loaded: LoadedTune, key: str) -> dict[str, Any]:
    """Values of earlier dimensions with which this one exists."""
    params: dict[str, Any] = {}
    for other, wanted in loaded.cfg.space[key].when.items():
        params |= _conditions(loaded, other) | {other: token(wanted[0])}
    if not is_active(loaded.cfg.space[key], params):
        raise UserError(f"tune.space.{key}.when: its conditions exclude one another; it would never be active")
    return params


def _check_budgets(loaded: LoadedTune, sampler: Sampler, where: str) -> None:
    cfg, role = loaded.cfg, sampler.role or sampler.method.role
    if role not in ("method", "probe"):
        raise UserError(f"tune.method={cfg.method}: is a {role} of the study, which has nothing to be tuned")
    met = sampler.budgets(tuple(loaded.budgets))
    for nfe in loaded.budgets:
        if nfe not in met:
            raise UserError(f"tune: {where}nfe={nfe} cannot be had of {sampler.title}, whose budgets are {list(met)}")
        try:
            sampler.check_budget(nfe)
        except UserError as error:
            raise UserError(f"tune: {where}{error}") from error
    if role != "method" and any(e.temperature not in (None, 1.0) for e in cfg.judged):
        raise UserError(f"tune: {where}{sampler.title} is a {role}, which is sampled at temperature 1 alone")


def _check_bound(session: Session, name: str) -> None:
    """Raise `UserError` unless the method has a bound to prune on."""
    method = session.build(name).eval().to(session.numerics.device)
    valid_NL = np.asarray(session.data.splits["valid"][:2], dtype=np.int64)
    x_BL = torch.from_numpy(valid_NL).to(session.numerics.device)
    with torch.no_grad():
        bound = method.bound(x_BL, step_generator(session.numerics.device, 0))
    if bound is None:
        raise UserError(
            f"tune.pruner.signal=bound: {method.title} has no bound; use tune.pruner.signal=score or kind=none"
        )
