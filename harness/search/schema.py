"""The typed configuration of a tuning: `studies/tune/<name>.yaml` and the arguments `tune.<key>=<value>`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Stand in the keys of a space for the searched method's options, `methods.seq`, and for those of its searched sampler,
#: `methods.seq.samplers.one_call`: "{method}.slots", "{sampler}.eta".
METHOD, SAMPLER = "{method}", "{sampler}"
#: Stands for the searched method's name in `base`.
NAME = "{name}"

KINDS = ("float", "int", "categorical")
DIRECTIONS = ("minimize", "maximize", "data")
SAMPLERS = ("tpe", "random", "nsga2")
PRUNERS = ("none", "median", "hyperband")
SIGNALS = ("bound", "score")


@dataclass
class DimensionConfig:
    """One dimension: which values a key of the configuration may take."""

    kind: str = ""  # "float", "int" or "categorical"; empty: categorical with choices, else what the key's value is
    low: float | None = None  # both ends are included
    high: float | None = None
    log: bool = False  # uniform in the logarithm
    step: float | None = None  # distance of neighbours on a grid from `low`; not with log
    choices: list[Any] = field(default_factory=list)  # numbers, words, true, false, null, or lists
    as_list: bool = False  # the key takes a list, and the value is its only element (study.temperatures)
    when: dict[str, list[Any]] = field(default_factory=dict)  # only where these earlier dimensions have such values
    optional: bool = False  # left out where the study has no such key, with all conditions on it


@dataclass
class ObjectiveConfig:
    """A number of the tuned method's row that is to be small, large, or as the data's own."""

    column: str = ""  # of results.parquet; empty: the study's first headline column
    nfe: int = 4
    temperature: float | None = None  # none: the trial's first
    direction: str = ""  # "minimize", "maximize", "data" (distance from the data's value); empty: as the column says


@dataclass
class ConstraintConfig:
    """Limits of a number of the tuned method's row; a trial outside of them is never the best one."""

    column: str = ""
    nfe: int = 4
    temperature: float | None = None
    min: float | None = None
    max: float | None = None
    within: float | None = None  # of the data's own value, as a share of it
    optional: bool = False  # left out where the study has no such column


@dataclass
class PrunerConfig:
    """When a trial of a single objective is ended early."""

    kind: str = "none"  # "median" (few trials) or "hyperband" (hundreds)
    signal: str = "bound"  # the validation bound, or "score": the objective's column of a few samples
    startup: int = 5  # trials that are never pruned (median)
    warmup: float = 0.25  # share of the steps before which nothing is pruned
    samples: int = 64  # of signal=score


@dataclass
class ConfirmConfig:
    """The re-evaluation of the best configurations and the default, with other training seeds."""

    top: int = 3
    # Seeds of a first round among the best alone: its winner goes on, and these are no part of the comparison.
    screen: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [101, 102, 103, 104, 105])
    samples: int = 0  # 0: the study's


@dataclass
class TuneConfig:
    """All of a tuning."""

    name: str = ""  # of its folder; empty: that of the YAML
    # What is searched, METHOD/SAMPLER or METHOD (its first sampler); empty: the first of `candidates` that the study has.
    method: str = ""
    candidates: list[str] = field(default_factory=list)
    space: dict[str, DimensionConfig] = field(default_factory=dict)  # by key of the configuration; "{method}" is known
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    constraints: dict[str, ConstraintConfig] = field(default_factory=dict)
    # What a trial does less than the study; the confirmation does all of it.
    seed: int = 0  # of training in all trials, and of the search
    steps: float = 1.0  # share of the study's training steps
    samples: int = 500
    nfe: list[int] = field(default_factory=list)  # empty: those of objectives and constraints
    base: list[str] = field(default_factory=list)  # overrides of trials alone; those of the command line win
    sampler: str = "tpe"  # "random", "nsga2"
    startup: int = 10  # random trials before the sampler learns from them
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    trials: int = 40  # in all, however many workers
    workers: int = 0  # 0: one for each GPU, or for each core
    storage: str = ""  # URL of a PostgreSQL database; empty: a journal file in the tune folder
    retries: int = 3  # of a trial whose worker died
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)

    @property
    def row(self) -> tuple[str, str]:
        """The method that is searched and the label of its sampler, once `harness.search.load` has completed the name."""
        method, _, sampler = self.method.partition("/")
        return method, sampler

    def in_full(self, key: str) -> str:
        """A key of the space, or an override, with what stands for method and sampler filled in."""
        method, sampler = self.row
        named = {SAMPLER: f"methods.{method}.samplers.{sampler}", METHOD: f"methods.{method}", NAME: method}
        for word, meant in named.items():
            key = key.replace(word, meant)
        return key
