"""The typed configuration of a tuning: `studies/tune/<name>.yaml` and the arguments `tune.<key>=<value>`.

And what its dimensions are to a sampler and to a study: parameters are named by the configuration keys that they set. A choice
that is a list stands in the storage as its text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Quote, QuotedString

from harness.config.fields import chosen, ranged

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

#: Stand in the keys of a space for the searched method's options, `methods.seq`, and for those of its searched sampler,
#: `methods.seq.samplers.one_call`: "{method}.slots", "{sampler}.eta".
METHOD, SAMPLER = "{method}", "{sampler}"
_WORD = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
#: Words that Hydra reads as something else than text.
_NOT_TEXT = ("true", "false", "null", "nan", "inf")


@dataclass
class DimensionConfig:
    """One dimension: which values a key of the configuration may take."""

    # Empty: categorical with choices, else what the key's value is.
    kind: str = chosen("", ("", "float", "int", "categorical"))
    low: float | None = ranged(None)  # both ends are included
    high: float | None = ranged(None)
    log: bool = False  # uniform in the logarithm
    step: float | None = ranged(None, 0, above=True)  # distance of neighbours on a grid from `low`; not with log
    choices: list[Any] = field(default_factory=list)  # numbers, words, true, false, null, or lists
    as_list: bool = False  # found out: the key takes a list, and the value is its only element (study.temperatures)
    when: dict[str, list[Any]] = field(default_factory=dict)  # only where these earlier dimensions have such values
    optional: bool = False  # left out where the study has no such key, with all conditions on it

    @property
    def ends(self) -> tuple[float, float]:
        """`low` and `high` of a dimension that has no choices."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    @property
    def values(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return ", ".join(json.dumps(c) for c in self.choices)
        low, high = self.ends
        return f"{low:g} to {high:g}" + (", log" if self.log else "") + (f", step {self.step:g}" if self.step else "")

    @property
    def conditions(self) -> str:
        """Where it exists, in words; empty: everywhere."""
        return "; ".join(f"{k} in {json.dumps(list(v))}" for k, v in self.when.items())


@dataclass
class JudgedConfig:
    """A number of the tuned method's row."""

    column: str = ""  # of results.parquet; empty, for an objective: the study's first headline column
    nfe: int = ranged(4, 1)  # a budget of network calls


@dataclass
class ObjectiveConfig(JudgedConfig):
    """A number that is to be small, large, or as the data's own."""

    # data: distance from the data's own value; empty: as the column says.
    direction: str = chosen("", ("", "minimize", "maximize", "data"))


@dataclass
class ConstraintConfig(JudgedConfig):
    """Limits of a number; a trial outside of them is never the best one."""

    min: float | None = ranged(None)
    max: float | None = ranged(None)
    within: float | None = ranged(None, 0)  # of the data's own value, as a share of it
    optional: bool = False  # left out where the study has no such column


@dataclass
class PrunerConfig:
    """When a trial of a single objective is ended early."""

    kind: str = chosen("none", ("none", "median", "hyperband"))  # median: few trials; hyperband: hundreds
    # The validation bound, or the objective's column of a few samples.
    signal: str = chosen("bound", ("bound", "score"))
    startup: int = ranged(5, 0)  # trials that are never pruned (median)
    warmup: float = ranged(0.25, 0, 1)  # share of the steps before which nothing is pruned
    samples: int = ranged(64, 8)  # of signal=score


@dataclass
class ConfirmConfig:
    """The re-evaluation of the best configurations and the default, with other training seeds."""

    top: int = ranged(3, 0)  # 0: no confirmation
    # Seeds of a first round among the best alone: its winner goes on, and these are no part of the comparison.
    screen: list[int] = ranged([], 0, distinct=True)
    seeds: list[int] = ranged([101, 102, 103, 104, 105], 0, distinct=True)
    samples: int = ranged(0, 8, also=(0,))  # 0: the study's


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
    seed: int = ranged(0, 0)  # of training in all trials, and of the search
    steps: float = ranged(1.0, 0, above=True)  # share of the study's training steps
    samples: int = ranged(500, 8)
    base: list[str] = field(default_factory=list)  # overrides of trials alone; those of the command line win
    sampler: str = chosen("tpe", ("tpe", "random", "nsga2"))
    startup: int = ranged(10, 1)  # random trials before the sampler learns from them
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    trials: int = ranged(40, 1)  # in all, however many workers
    workers: int = ranged(0, 0)  # 0: one for each GPU, or for each core
    storage: str = ""  # URL of a PostgreSQL database; empty: a journal file in the tune folder
    retries: int = ranged(3, 0)  # of a trial whose worker died
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)

    @property
    def judged(self) -> list[JudgedConfig]:
        """All objectives, then all constraints."""
        return [*self.objectives.values(), *self.constraints.values()]

    @property
    def budgets(self) -> list[int]:
        """Those that objectives and constraints are about."""
        return sorted({e.nfe for e in self.judged})

    @property
    def row(self) -> tuple[str, str]:
        """The method that is searched and the label of its sampler, once `harness.search.load` has completed the name."""
        method, _, sampler = self.method.partition("/")
        return method, sampler

    def is_own(self, key: str) -> bool:
        """Whether a key is an option of the searched method, or of its searched sampler."""
        method, sampler = (f"{word}." for word in map(self.in_full, (METHOD, SAMPLER)))
        return key.startswith(sampler if ".samplers." in key else method)

    def in_full(self, key: str) -> str:
        """A key of the space, or an override, with what stands for method and sampler filled in."""
        method, sampler = self.row
        return key.replace(SAMPLER, f"methods.{method}.samplers.{sampler}").replace(METHOD, f"methods.{method}")


# ---- dimensions -------------------------------------------------------------------------------------------------------
def suggest(trial: BaseTrial, cfg: TuneConfig) -> dict[str, Any]:
    """Ask the sampler for each dimension that is active, in order: key of the configuration to value."""
    values: dict[str, Any] = {}
    for key, d in cfg.space.items():
        if is_active(d, values):
            values[key] = suggest_one(trial, key, d)
    return values


def suggest_one(trial: BaseTrial, key: str, d: DimensionConfig) -> Any:
    """Ask the sampler for one dimension; raises `ValueError` for a range that cannot be."""
    if d.kind == "categorical":
        return trial.suggest_categorical(key, [token(choice) for choice in d.choices])
    if d.kind == "int":
        low, high = map(int, d.ends)
        return trial.suggest_int(key, low, high, step=int(d.step or 1), log=d.log)
    return trial.suggest_float(key, *d.ends, step=d.step, log=d.log)


def is_active(dimension: DimensionConfig, values: dict[str, Any]) -> bool:
    """Whether the values of earlier dimensions are such that this one exists."""
    return all(
        other in values and values[other] in [token(choice) for choice in wanted]
        for other, wanted in dimension.when.items()
    )


def token(choice: Any) -> Any:
    """A choice as the storage keeps it: numbers, words, booleans and None as they are, a list as its text."""
    return literal(choice) if isinstance(choice, list) else choice


def literal(value: Any) -> str:
    """The value as it is written in an argument `key=value` (Hydra's grammar)."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(literal(v) for v in value) + "]"
    if not isinstance(value, str):
        return repr(value)
    if _WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return QuotedString(value, Quote.single).with_quotes()


def overrides_of(params: dict[str, Any], cfg: TuneConfig) -> list[str]:
    """Arguments `key=value` of `harness.run` for the parameters of a trial, in the order of the space."""
    return [f"{key}={_written(d, params[key])}" for key, d in cfg.space.items() if key in params]


def _written(dimension: DimensionConfig, value: Any) -> str:
    if dimension.kind == "categorical":
        # A list comes back from the storage as text.
        value = next((c for c in dimension.choices if isinstance(c, list) and token(c) == value), value)
    return f"[{literal(value)}]" if dimension.as_list else literal(value)
