"""Dimensions of a search: what a sampler is asked for, and the arguments that its answers become.

Parameters are named by the configuration keys that they set. A choice that is a list stands in the storage as its text.
"""

from __future__ import annotations

import re
from typing import Any

import optuna

from harness.search.schema import DimensionConfig, TuneConfig

_WORD = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
#: Words that Hydra reads as something else than text.
_NOT_TEXT = ("true", "false", "null", "nan", "inf")


def suggest(trial: optuna.Trial, cfg: TuneConfig) -> dict[str, Any]:
    """Ask the sampler for each dimension that is active, in order: key of the configuration to value."""
    values: dict[str, Any] = {}
    for key, d in cfg.space.items():
        if not is_active(d, values):
            continue
        if d.kind == "categorical":
            values[key] = trial.suggest_categorical(key, [token(choice) for choice in d.choices])
        elif d.kind == "int":
            low, high = map(int, d.ends)
            values[key] = trial.suggest_int(key, low, high, step=int(d.step or 1), log=d.log)
        else:
            values[key] = trial.suggest_float(key, *d.ends, step=d.step, log=d.log)
    return values


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
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash counts only before a quote
    trailing = escaped[len(escaped.rstrip("\\")) :]
    return f"'{escaped}{trailing}'"


def overrides_of(params: dict[str, Any], cfg: TuneConfig) -> list[str]:
    """Arguments `key=value` of `harness.run` for the parameters of a trial, in the order of the space."""
    return [f"{key}={_written(d, params[key])}" for key, d in cfg.space.items() if key in params]


def _written(dimension: DimensionConfig, value: Any) -> str:
    if dimension.kind == "categorical":
        # A list comes back from the storage as text.
        value = next((c for c in dimension.choices if isinstance(c, list) and token(c) == value), value)
    return f"[{literal(value)}]" if dimension.as_list else literal(value)


def ends_of(dimension: DimensionConfig) -> list[Any]:
    """The values that stand for all others when a space is checked: both ends, or all choices."""
    if dimension.kind == "categorical":
        return list(dimension.choices)
    return list(map(int if dimension.kind == "int" else float, dimension.ends))
