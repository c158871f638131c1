"""Turns a command line of `harness.tune` into a checked search over a study: `tune=NAME`, `tune.KEY=VALUE`, the rest is the
study's as `harness.run` takes it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.config.compose import leaves
from harness.config.load import Draft, Loaded, load_draft
from harness.config.rows import rows_of
from harness.config.trees import plain
from harness.errors import UserError, nearest
from harness.search.checks import check_config
from harness.search.database import checked_url
from harness.search.loaded import LoadedTune
from harness.search.possible import check_possible
from harness.search.schema import DimensionConfig, TuneConfig
from harness.tracking.uri import redact

_POINTS_TO = re.compile(r"\$\{([\w.-]+)\}")


def load_tune(arguments: list[str], config_dirs: list[Path] | None = None, check: bool = True) -> LoadedTune:
    """Compose and check a search; raises `UserError` before anything is tried.

    Without `check`, what needs the data (budgets, what a method accepts) is left unchecked: for showing a configuration.
    """
    folders = list(config_dirs or [])
    base_args = [a for a in arguments if not _is_ours(a)]
    draft = load_draft(arguments, folders, ("tune",))
    base = draft.loaded()
    cfg = base.cfg.tune
    if cfg.storage:
        checked_url(cfg.storage)  # before the data are read
    cfg.method = _row(cfg, base)
    notes = _full_keys(cfg, draft, base)
    loaded = LoadedTune(
        cfg, {}, base_args, folders, draft, base,
        _trial_overrides(cfg, base, base_args),
        [], "python -m harness.tune " + " ".join(map(_shown, arguments)), notes,
    )  # fmt: skip
    check_config(loaded)  # completes objectives, constraints and the pruner
    cfg.nfe = sorted({*cfg.nfe, *(e.nfe for e in cfg.judged)})
    tree = plain(OmegaConf.structured(cfg), resolve=False)
    loaded = replace(loaded, budgets=list(cfg.nfe), tree={k: v for k, v in tree.items() if k != "storage"})
    if check:
        check_possible(loaded)
    return loaded


def _is_ours(argument: str) -> bool:
    """Whether an argument belongs to the search and not to the study."""
    return re.match(r"[+~]*tune(\.|=|@|$)", argument) is not None


def _shown(argument: str) -> str:
    """The argument as it may be printed and kept: without a login."""
    storage = argument.lstrip("+").startswith("tune.storage=")
    return "tune.storage=***" if storage and "://" not in argument else redact(argument)


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


def _full_keys(cfg: TuneConfig, draft: Draft, base: Loaded) -> list[str]:
    """Write the space's keys in full; where a key takes its value from another one, that is what is searched.

    Returns what a user should know of it.
    """
    raw, followed = plain(draft.config, resolve=False), []
    known = set(leaves(base.tree))
    full: dict[str, DimensionConfig] = {}
    names: dict[str, str] = {}
    for key, d in cfg.space.items():
        asked = cfg.in_full(key)
        if d.optional and asked not in known:
            for other in cfg.space.values():
                other.when = {k: v for k, v in other.when.items() if k not in (key, asked)}
            continue
        names[key] = names[asked] = found = _followed(asked, raw)
        followed += [found] if found != asked else []
        if found in full:
            raise UserError(f"tune.space: {key} and an earlier dimension both set {found}; keep one of them")
        full[found] = d
    for d in full.values():
        d.when = {names.get(k, cfg.in_full(k)): v for k, v in d.when.items()}
    cfg.space = full
    names_of = ", ".join(followed)
    return [f"{cfg.method} takes values from other keys, which are what is searched: {names_of}"] if followed else []


def _followed(key: str, raw: dict[str, Any]) -> str:
    """The key that `key` takes its value from (`${other.key}`), or `key` itself."""
    for _ in range(8):
        node: Any = raw
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        match = _POINTS_TO.fullmatch(node) if isinstance(node, str) else None
        if match is None:
            return key
        key = match.group(1)
    return key


def _trial_overrides(cfg: TuneConfig, base: Loaded, base_args: list[str]) -> list[str]:
    """What holds in trials alone: `tune.base`, but for keys that the command line sets, and fewer steps."""
    given = {a.split("=", 1)[0].lstrip("+~") for a in base_args}
    filled = [cfg.in_full(o) for o in cfg.base]
    kept = [o for o in filled if o.split("=", 1)[0] not in given]
    steps = max(1, round(base.cfg.scale.steps * cfg.steps))
    return [*kept, *([f"scale.steps={steps}"] if cfg.steps != 1.0 else [])]
