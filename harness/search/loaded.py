"""A search and the study that it is about: where its files go, what its trials are, and what identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.config.load import Draft, Loaded
from harness.provenance import short_hash
from harness.search.context import Context, Job
from harness.search.schema import TuneConfig
from harness.search.space import overrides_of
from harness.study.session import Session

#: Keys of a search that do not change what a trial is or how it is judged: it goes on when they change.
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

    @property
    def place(self) -> str:
        """Name of the search as a study."""
        return f"{self.base.cfg.study.name}/tune/{self.cfg.name}"

    @property
    def folder(self) -> Path:
        """`runs/<study>[/<task>]/tune/<name>`: everything that this search writes, but for weights."""
        return Path(self.base.cfg.runs_dir).resolve() / self.place

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """'minimize' or 'maximize' for each objective; a distance from the data's value is minimised."""
        return ["maximize" if o.direction == "maximize" else "minimize" for o in self.cfg.objectives.values()]

    def trial_tree(self, overrides: list[str], place: str) -> dict[str, Any]:
        """The configuration of a trial: one method and one seed, the search's budgets and number of samples.

        Its files go to `place` in the tune folder. Raises `UserError` for values that are not possible.
        """
        tree = self.draft.loaded([*self.trial_overrides, *overrides]).tree
        study = tree["study"]
        study |= {"name": f"{self.place}/{place}", "seeds": [self.cfg.seed], "samples": self.cfg.samples}
        study |= {"nfe": self.budgets, "unmet": "refuse", "temperatures": self.temperatures(study)}
        study.pop("nfe_of", None)
        # A worker has no use for tracking, whose address may hold a login.
        tree["tracking"] |= {"uri": None}
        return tree | {"only": [self.cfg.method], "plan": False}

    def temperatures(self, study: Mapping[str, Any]) -> list[float]:
        """The temperature that is searched, or 1 or the study's first one, or what objectives and constraints name."""
        given = study["temperatures"]
        first = 1.0 if 1.0 in given else given[0]
        asked = [e.temperature for e in self.cfg.judged]
        return list(dict.fromkeys(float(first if heat is None else heat) for heat in asked))

    def job(self, number: int, params: dict[str, Any]) -> Job:
        """The trial of these values (key to value, as `harness.search.space.suggest` gives them) for a worker.

        Raises `UserError` for values that are not possible.
        """
        overrides = overrides_of(params, self.cfg)
        key = short_hash([self.identity, overrides], 12)
        return Job(number, self.trial_tree(overrides, f"trials/{key}"))

    @cached_property
    def context(self) -> Context:
        """What all trials have in common."""
        weights = Path(self.base.cfg.runs_dir).resolve() / self.base.cfg.study.name / "weights"
        tree = self.trial_tree([], "trials/default")
        return Context(replace(self.cfg, storage=""), tree, self.place, self.folder, weights, self.identity)

    @property
    def session(self) -> Session:
        """A trial with the default values, whose data and judge others may adopt."""
        return self.context.session

    @cached_property
    def identity_parts(self) -> dict[str, Any]:
        """What a trial and its judgement depend on, by name: searches of one name that differ here do not mix."""
        tune = {k: v for k, v in self.tree.items() if k not in _FREE}
        study = {k: v for k, v in self.trial_tree([], "").items() if k not in _ELSEWHERE}
        method, sampler = self.cfg.row
        node = study["methods"][method]
        study["methods"] = {method: node | {"samplers": {sampler: node["samplers"][sampler]}}}
        study["study"] = {k: v for k, v in study["study"].items() if k not in ("name", "question", "tasks")}
        study["compute"] = {k: v for k, v in study["compute"].items() if k != "workers"}
        return {"tune": tune} | study

    @cached_property
    def identity(self) -> str:
        """Of `identity_parts`, 12 characters."""
        return short_hash(self.identity_parts, 12)
