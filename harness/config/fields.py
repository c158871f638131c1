"""Ranges and choices of options, declared beside the fields: `width: int = ranged(128, 1)`, `loss: str = chosen("a", LOSSES)`.

They are kept in the metadata of the dataclass field, where `check_fields` and `--help` find them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from harness.errors import UserError, nearest

_RULE = "rule"
#: Tables, and the generators of torch, keep whole numbers in 64 bits with a sign.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without the ends where `above` or `below`, and those of `also`.

    NaN is in no range, and infinity only where `also` has it. A list may have to be `filled` or `distinct`.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()
    unit: str = ""
    filled: bool = False
    distinct: bool = False

    def check(self, key: str, value: Any, default: Any = None) -> None:
        """Raise `UserError` with the nearest value (the default, where an end is open) unless `value` is inside."""
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{key}={value}: does not fit into 64 bits; the largest is {LARGEST}")
        inside = value > self.low if self.above else value >= self.low
        inside &= value < self.high if self.below else value <= self.high
        if (inside and math.isfinite(value)) or value in self.also:
            return
        end = (self.high, self.below) if value >= self.high else (self.low, self.above)
        usable = math.isfinite(end[0]) and not end[1] and not math.isnan(value)
        way_out = f"; the nearest is {_number(end[0])}" if usable else ""
        if not usable and isinstance(default, int | float):
            way_out = f"; the default is {_number(default)}"
        finite = "" if math.isfinite(value) or "finite" in str(self) else "finite, and "
        raise UserError(f"{key}={value}: must be {finite}{self}{way_out}")

    def __str__(self) -> str:
        low, high, also = _number(self.low), _number(self.high), "".join(f", or {_number(v)}" for v in self.also)
        unit = f" {self.unit}" if self.unit else ""
        if self.low == -math.inf:
            text = "a finite number" if self.high == math.inf else f"{'below' if self.below else 'at most'} {high}"
        elif self.high == math.inf:
            text = f"above {low}" if self.above else f"{low} or more"
        elif self.above or self.below:
            text = f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"
        else:
            text = f"between {low} and {high}"
        return text + unit + also


@dataclass(frozen=True)
class Choice:
    """One of some words; the empty one, where it is among them, stands for what is found out later."""

    choices: tuple[str, ...]
    filled: bool = False
    distinct: bool = False

    def check(self, key: str, value: Any, default: Any = None) -> None:
        """Raise `UserError` with the nearest choice unless `value` is one."""
        if value not in self.choices:
            raise UserError(f"{key}={value}: is unknown{nearest(value, filter(None, self.choices))}")

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.choices))


@dataclass
class NoOptions:
    """There is nothing to choose."""


def ranged(default: Any, low: float = -math.inf, high: float = math.inf, **more: Any) -> Any:
    """A field of a number (or None), of a list of numbers or a dict of such, each in `Range(low, high, **more)`."""
    return _field(default, Range(low, high, **more))


def chosen(default: Any, choices: Iterable[str], **more: Any) -> Any:
    """A field of a word, or a list of words, each one of `choices`."""
    return _field(default, Choice(tuple(choices), **more))


def _field(default: Any, rule: Range | Choice) -> Any:
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata={_RULE: rule})
    return dataclasses.field(default=default, metadata={_RULE: rule})


def rule_of(field: dataclasses.Field[Any]) -> Range | Choice | None:
    """What was declared beside a field."""
    return field.metadata.get(_RULE)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of a field that is not given; `dataclasses.MISSING` where it must be."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def check_fields(options: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first value outside of what its field declares, in dataclasses inside of it too.

    `prefix` is the key of `options` in the configuration: messages name the keys that a user types.
    """
    for field in dataclasses.fields(options):
        key = f"{prefix}.{field.name}" if prefix else field.name
        _check(key, getattr(options, field.name), rule_of(field), default_of(field))


def _check(key: str, value: Any, rule: Range | Choice | None, default: Any) -> None:
    if value is None:
        return
    if dataclasses.is_dataclass(value):
        check_fields(value, key)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _check(f"{key}.{name}", inner, rule, default)
    elif isinstance(value, list) and rule is not None:
        if rule.filled and not value:
            raise UserError(f"{key}=[]: must have one value at least")
        if rule.distinct and len(set(value)) < len(value):
            raise UserError(f"{key}={value}: names a value twice")
        for inner in value:
            _check(key, inner, rule, default)
    elif rule is not None:
        rule.check(key, value, default)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
