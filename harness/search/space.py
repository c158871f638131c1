"""Dimensions of a search: what a sampler is asked for, and the arguments that its answers become.

Parameters are named by the configuration keys that they set. A choice that is a list stands in the storage as its text.
"""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from optuna.trial import BaseTrial

from harness.search.schema import DimensionConfig, TuneConfig

_WORD = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
#: Words that Hydra reads as something else than text.
_NOT_TEXT = ("true", "false", "null", "nan", "inf")


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
