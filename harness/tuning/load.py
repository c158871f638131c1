"""Turns a command line of `harness.tune` into a checked search over a study: `tune=NAME`, `tune.KEY=VALUE`, the rest is the
study's as `harness.run` takes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness.config.compose import leaves
from harness.config.load import Draft, Loaded, load_draft
from harness.errors import UserError, nearest
from harness.provenance import short_hash
from harness.tuning.arguments import is_ours, read_config, shown
from harness.tuning.schema import METHOD, NAME, DimensionConfig, TuneConfig

if TYPE_CHECKING:
    from harness.study.session import Session

_POINTS_TO = re.compile(r"\$\{([\w.-]+)\}")
#: Keys of a tuning that do not change what a trial is or how it is judged: a search goes on when they change.
_FREE = ("name", "candidates", "sampler", "startup", "pruner", "trials", "workers", "storage", "retries", "confirm")
#: Parts of a configuration that do not change what a trial measures.
_ELSEWHERE = ("tracking", "runs_dir", "cache_dir", "plan", "only")


@dataclass(frozen=True)
class LoadedTune:
    """A search and the study that it is about.

    `cfg` is complete: every objective and constraint has its column and direction, every key of the space is a full one.
    `tree` is the same as plain containers, without the storage's URL. `base` is the study as it is; a trial is the study
    with `trial_overrides`, then its own. `notes` are lines that a user should see.
    """

    cfg: TuneConfig
    tree: dict[str, Any]
    base_args: list[str]
    config_dirs: list[Path]
    draft: Draft = field(repr=False)
    base: Loaded = field(repr=False)
    trial_overrides: list[str]
    budgets: list[int]
    command: str
    notes: list[str] = field(default_factory=list)
    #: The data's own scores, once they are known; see `harness.tuning.objective.data_values`.
    of_data: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """`runs/<study>[/<task>]/tune/<name>`: everything that this search writes, but for weights."""
        return self._study_folder / "tune" / self.cfg.name

    @property
    def weights(self) -> Path:
        """The study's own folder of weights, which all of its searches share."""
        return self._study_folder / "weights"

    @property
    def _study_folder(self) -> Path:
        return Path(self.base.cfg.runs_dir).resolve() / self.base.cfg.study.name

    def with_overrides(self, overrides: list[str]) -> Loaded:
        """The study with these arguments `key=value` after all others, checked; raises `UserError`."""
        return self.draft.loaded(overrides)

    def trial_tree(self, overrides: list[str], place: str) -> dict[str, Any]:
        """The configuration of a trial: one method and one seed, the search's budgets and number of samples.

        Its files go to `place` in the tune folder. Raises `UserError` for values that are not possible.
        """
        cfg = self.cfg
        tree = self.draft.loaded([*self.trial_overrides, *overrides]).tree
        study = tree["study"]
        study |= {"name": f"{self.base.cfg.study.name}/tune/{cfg.name}/{place}", "seeds": [cfg.seed]}
        study |= {"nfe": self.budgets, "samples": cfg.samples, "unmet": "refuse", "temperatures": self._heats(study)}
        study.pop("nfe_of", None)
        return tree | {"only": [cfg.method], "plan": False}

    def _heats(self, study: dict[str, Any]) -> list[float]:
        """The temperature that is searched, or the study's first one, or what objectives and constraints name."""
        given = study["temperatures"]
        first = 1.0 if 1.0 in given else given[0]
        asked = [e.temperature for e in (*self.cfg.objectives.values(), *self.cfg.constraints.values())]
        return list(dict.fromkeys(float(first if heat is None else heat) for heat in asked))

    @cached_property
    def session(self) -> Session:
        """A trial with the default values, whose data and judge others may adopt."""
        from harness.study.session import Session

        return Session(self.trial_tree([], "trials/default"), self.weights)

    @cached_property
    def identity_parts(self) -> dict[str, Any]:
        """What a trial and its judgement depend on, by name: searches of one name that differ here do not mix."""
        tune = {k: v for k, v in self.tree.items() if k not in _FREE}
        study = {k: v for k, v in self.session.tree.items() if k not in _ELSEWHERE}
        study["methods"] = {self.cfg.method: study["methods"][self.cfg.method]}
        study["study"] = {k: v for k, v in study["study"].items() if k not in ("name", "question", "tasks")}
        study["compute"] = {k: v for k, v in study["compute"].items() if k != "workers"}
        return {"tune": tune} | study

    @cached_property
    def identity(self) -> str:
        """Of `identity_parts`, 12 characters."""
        return short_hash(self.identity_parts, 12)

    @cached_property
    def weights_keys(self) -> dict[str, set[str]]:
        """Identities of the weights at the ends of each dimension, by its key; all values are tried, and refused here."""
        from harness.tuning.possible import weights_keys

        return weights_keys(self)

    @property
    def sampling_only(self) -> bool:
        """Whether no dimension changes the weights."""
        return len(set().union(*self.weights_keys.values())) == 1


def load_tune(arguments: list[str], config_dirs: list[Path] | None = None, check: bool = True) -> LoadedTune:
    """Compose and check a search; raises `UserError` before anything is tried.

    Without `check`, what needs the data (budgets, what a method accepts) is left unchecked: for showing a configuration.
    """
    from harness.tuning.checks import check_config
    from harness.tuning.possible import check_possible

    mine = [a for a in arguments if is_ours(a)]
    base_args = [a for a in arguments if not is_ours(a)]
    folders = list(config_dirs or [])
    cfg = read_config(mine, folders)
    draft = load_draft(base_args, folders)
    base = draft.loaded()
    cfg.method = _method(cfg, base)
    notes = _full_keys(cfg, draft, base)
    loaded = LoadedTune(
        cfg, {}, base_args, folders, draft, base,
        _trial_overrides(cfg, base, base_args),
        [], "python -m harness.tune " + " ".join(map(shown, arguments)), notes,
    )  # fmt: skip
    check_config(loaded)  # completes objectives, constraints and the pruner
    judged = (*cfg.objectives.values(), *cfg.constraints.values())
    cfg.nfe = sorted({*cfg.nfe, *(e.nfe for e in judged)})
    tree = OmegaConf.to_container(OmegaConf.structured(cfg))
    loaded = replace(loaded, budgets=list(cfg.nfe), tree={k: v for k, v in tree.items() if k != "storage"})
    if check:
        check_possible(loaded)
    return loaded


# ---- what it means in this study --------------------------------------------------------------------------------------
def _method(cfg: TuneConfig, base: Loaded) -> str:
    known = base.cfg.methods
    if cfg.method:
        if cfg.method not in known:
            raise UserError(f"tune.method={cfg.method}: is no method of this study{nearest(cfg.method, known)}")
        return cfg.method
    found = next((name for name in cfg.candidates if name in known), None)
    if found is None:
        raise UserError(f"tune.method is empty: name the method that is tuned, one of {', '.join(known)}")
    return found


def _full_keys(cfg: TuneConfig, draft: Draft, base: Loaded) -> list[str]:
    """Write the space's keys in full; where a key takes its value from another one, that is what is searched.

    Returns what a user should know of it.
    """
    raw, followed = OmegaConf.to_container(draft.config, resolve=False), []
    known = set(leaves(base.tree))
    full: dict[str, DimensionConfig] = {}
    names: dict[str, str] = {}
    for key, d in cfg.space.items():
        asked = key.replace(METHOD, f"methods.{cfg.method}")
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
        d.when = {names.get(k, k.replace(METHOD, f"methods.{cfg.method}")): v for k, v in d.when.items()}
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
    filled = [o.replace(METHOD, f"methods.{cfg.method}").replace(NAME, cfg.method) for o in cfg.base]
    kept = [o for o in filled if o.split("=", 1)[0] not in given]
    steps = max(1, round(base.cfg.scale.steps * cfg.steps))
    return [*kept, *([f"scale.steps={steps}"] if cfg.steps != 1.0 else [])]
