"""A search and the study that it is about: where its files go, what its trials are, and what identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from harness.config.load import Draft, Loaded
from harness.config.trees import plain
from harness.provenance import short_hash
from harness.search.schema import TuneConfig, overrides_of
from harness.study.cells import make_cells
from harness.study.made import changed, row_code
from harness.study.match import read_plan
from harness.study.session import Session

#: Keys of a search that do not change what a trial is or how it is judged: it goes on when they change.
_FREE = ("name", "candidates", "sampler", "startup", "pruner", "trials", "workers", "retries", "confirm")
#: Parts of a configuration that do not change what a trial measures.
ELSEWHERE = ("tracking", "runs_dir", "cache_dir", "plan", "only", "redo", "stale")


def judged_at(study: Mapping[str, Any]) -> float:
    """The temperature of what is judged: 1 where the study has it, else its first (the one that is searched)."""
    given = study["temperatures"]
    return 1.0 if 1.0 in given else given[0]


def code_of_trials(tree: dict[str, Any], row: tuple[str, str]) -> dict[str, str]:
    """Hashes by module of the code that trials of METHOD, SAMPLER depend on; `tree` is the configuration of any of them."""
    session, code = Session(tree), dict[str, str]()
    for step in ("train", "sample", "score"):
        code |= row_code(session, step, *row)
    return code


@dataclass(frozen=True)
class Context:
    """What all trials of a search have in common, as plain data: it goes to worker processes and holds no login."""

    cfg: TuneConfig
    tree: dict[str, Any]  # the configuration of a trial with the default values
    folder: Path
    weights: Path  # the study's own folder of weights, which all of its searches share
    identity: str
    code: str  # hash of `code_of_trials`
    #: The data's own scores, once they are known; see `harness.search.trial.data_values`.
    of_data: dict[str, float] = field(default_factory=dict, repr=False)

    @cached_property
    def session(self) -> Session:
        """A trial with the default values, whose data and judge others may adopt."""
        return Session(self.tree, self.weights)

    def session_of(self, tree: dict[str, Any], *others: Session) -> Session:
        """The session of a trial, which takes over what `others` have made.

        Weights that other code trained stay where they are, and are used with `stale=keep` alone.
        """
        session = Session(tree, self.weights)
        for other in (self.session, *others):
            session.adopt(other)
        [cell] = make_cells(session)
        known = session.cfg.stale != "keep" and cell.weights.plan.exists()
        if known and changed(session, "train", cell.weights, read_plan(cell.weights).made):
            session.weights = self.weights / f"code-{self.code}"
        return session


@dataclass(frozen=True)
class LoadedTune:
    """A search and the study that it is about.

    `cfg` is complete: every objective and constraint has its column and direction, every key of the space is a full one.
    `base` is the study as it is; a trial is the study with `trial_overrides`, then its own. `notes` are lines that a user
    should see.
    """

    cfg: TuneConfig
    base_args: list[str]
    config_dirs: list[Path]
    draft: Draft = field(repr=False)
    base: Loaded = field(repr=False)
    trial_overrides: list[str]
    command: str
    notes: list[str] = field(default_factory=list)

    @cached_property
    def tree(self) -> dict[str, Any]:
        """`cfg` as plain containers, without the storage's URL, which may hold a login."""
        tree = plain(OmegaConf.structured(self.cfg), resolve=False)
        return {key: value for key, value in tree.items() if key != "storage"}

    @property
    def name(self) -> str:
        """What the search is called in storage and tracking: as the study, its task, and itself."""
        return f"{self.base.cfg.study.name}/{self.cfg.name}"

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

    @property
    def samples_only(self) -> bool:
        """Whether trials differ in how they sample alone: then they share their weights."""
        sampling = (f"methods.{self.cfg.row[0]}.samplers.", "study.")
        return all(key.startswith(sampling) for key in self.cfg.space)

    def trial_tree(self, overrides: list[str], place: str) -> dict[str, Any]:
        """The configuration of a trial: one method and one seed, the search's budgets and number of samples.

        Its files go to `place` in the tune folder. Raises `UserError` for values that are not possible.
        """
        tree = self.draft.loaded([*self.trial_overrides, *overrides]).tree
        study = tree["study"]
        study |= {"name": f"{self.place}/{place}", "seeds": [self.cfg.seed], "samples": self.cfg.samples}
        study |= {"nfe": self.cfg.budgets, "unmet": "refuse", "temperatures": [judged_at(study)]}
        study |= {"nfe_of": {}, "equivalent_nfe": []}
        # A worker has no use for tracking, whose address may hold a login.
        tree["tracking"] |= {"uri": None}
        return tree | {"only": [self.cfg.method], "plan": False}

    def job(self, params: dict[str, Any]) -> dict[str, Any]:
        """The configuration of the trial of these values (see `harness.search.schema.suggest`), for a worker.

        Raises `UserError` for values that are not possible.
        """
        overrides = overrides_of(params, self.cfg)
        return self.trial_tree(overrides, f"trials/{short_hash([self.identity, self.context.code, overrides], 12)}")

    @cached_property
    def _default(self) -> dict[str, Any]:
        return self.trial_tree([], "trials/default")

    @cached_property
    def context(self) -> Context:
        """What all trials have in common."""
        weights = Path(self.base.cfg.runs_dir).resolve() / self.base.cfg.study.name / "weights"
        code = short_hash(self.code, 12)
        study = self._default["study"] | {"name": f"{self.place}/trials/default-{code}"}
        tree = self._default | {"study": study}
        return Context(replace(self.cfg, storage=""), tree, self.folder, weights, self.identity, code)

    @cached_property
    def code(self) -> dict[str, str]:
        """See `code_of_trials`."""
        return code_of_trials(self._default, self.cfg.row)

    @cached_property
    def identity_parts(self) -> dict[str, Any]:
        """What a trial and its judgement depend on, by name: searches of one name that differ here do not mix."""
        method, sampler = self.cfg.row
        tree = {k: v for k, v in self._default.items() if k not in ELSEWHERE}
        node = tree["methods"][method]
        tree["methods"] = {method: node | {"samplers": {sampler: node["samplers"][sampler]}}}
        tree["study"] = {k: v for k, v in tree["study"].items() if k not in ("name", "question", "tasks")}
        tree["compute"] = {k: v for k, v in tree["compute"].items() if k != "workers"}
        return {"tune": {k: v for k, v in self.tree.items() if k not in _FREE}} | tree

    @cached_property
    def identity(self) -> str:
        """Of `identity_parts`, 12 characters."""
        return short_hash(self.identity_parts, 12)
