"""Turns a command line of `harness.tune` into a checked search over a study: `tune=NAME`, `tune.KEY=VALUE`, the rest is the
study's as `harness.run` takes it.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.config.best import key_of
from harness.config.compose import leaves
from harness.config.load import Loaded, load_draft
from harness.config.rows import rows_of
from harness.errors import UserError, nearest
from harness.search.checks import check_config, check_possible
from harness.search.database import checked_url
from harness.search.loaded import LoadedTune
from harness.search.schema import DimensionConfig, TuneConfig
from harness.tracking.uri import redact


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
