"""A metric turns samples into numbers with standard errors; each names its columns, units and direction.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge

#: Before a column's name in the results: what others have printed of it; and the column that says where.
PRINTED, PRINTED_IN = "printed_", "printed_in"


@dataclass(frozen=True)
class Column:
    """A column of the results: `name` in the parquet (its standard error is `name_se`), a title and a unit for people.

    `better` says which way is better: "lower", "higher", or "data" where the data's own value is the aim. Columns that
    are not `headline` are in the parquet and in tracking, but not in the printed table or the figures. Those that are
    `aside` stand in the report's second table and are not drawn. Where the data's own value is a `ceiling`, rows above it
    beyond doubt are marked. A judge that tells held-out data from a sampler which calls no network by less than `least_gap`
    cannot rank what lies between: the column is marked, and so are those that are `judged_by` it. `tradeoff` names a
    side of the trade between quality (above 0, better low, compared by ratios) and diversity, which is read together: the
    first of each in a study are drawn against each other. `meaning` is what a report says of the number.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher", "data"]
    headline: bool = True
    aside: bool = False
    ceiling: bool = False
    least_gap: float = 0.0
    judged_by: str = ""
    tradeoff: Literal["", "quality", "diversity"] = ""
    meaning: str = ""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Samples:
    """Token ids (N, L) and their decoded texts, in the same order."""

    x_NL: np.ndarray
    texts: list[str]


@dataclass(frozen=True)
class Prompts:
    """Held-out sequences of which samplers are given the tokens that are not hidden: texts, ids (N, L) and `hidden_NL` bool."""

    texts: list[str]
    x_NL: np.ndarray
    hidden_NL: np.ndarray


@dataclass(frozen=True)
class ScoreContext:
    """What scoring needs besides the samples: the reference set is fixed for a study and shared by all rows.

    `reference` has the same n and length as the samples; `cache` holds features by content hash; `seed` fixes
    bootstrap and k-means seeds. `prompts` are there where samples fill in what is hidden of held-out text.
    """

    data: TokenData
    reference: Samples
    judge: Judge
    cache: Path
    seed: int
    prompts: Prompts | None = None


@dataclass(frozen=True)
class Scores:
    """`values[name] = (value, standard error)` for each column; `per_sequence[name]` is (N,) where it exists.

    `profiles[title]` are numbers by place in a sequence, for a table of their own.
    """

    values: dict[str, tuple[float, float]]
    per_sequence: dict[str, np.ndarray] = field(default_factory=dict)
    profiles: dict[str, np.ndarray] = field(default_factory=dict)


class Metric(ABC):
    """Built as `cls(options)`; `version` changes whenever the definition does and is part of the protocol's identity.

    `definition` says in one sentence what the number is; a column's `meaning` adds how it is to be read.
    """

    Options: type
    version: str = "1"
    definition: str = ""
    columns: tuple[Column, ...] = ()
    #: Whether it scores what was filled in, and needs `ScoreContext.prompts`.
    prompted: bool = False

    def __init__(self, options) -> None:
        self.options = options

    def check(self, data: TokenData, judge: Judge) -> None:  # noqa: B027 - most metrics fit all data and judges
        """Raise `UserError` where the metric means nothing on these data or with this judge, which need not be prepared."""

    def check_size(self, n: int, length: int) -> None:  # noqa: B027 - most metrics take any number of samples of any length
        """Raise `UserError` where n samples of so many tokens cannot be scored."""

    def columns_for(self, data: TokenData, judge: Judge) -> tuple[Column, ...]:
        """The columns of a study of these data under this judge, which need not be prepared: `columns` for most."""
        return self.columns

    @abstractmethod
    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """Score one set of samples; `check` was called."""

    def identity(self) -> str:
        """What the numbers mean, as JSON with sorted keys: they are comparable only where these strings are equal."""
        return json.dumps(
            {
                "metric": type(self).__name__,
                "version": self.version,
                "definition": self.definition,
                "options": dataclasses.asdict(self.options),
            },
            sort_keys=True,
        )


def columns_of(metrics: Sequence[Metric], study: tuple[TokenData, Judge] | None = None) -> list[Column]:
    """The columns of metrics, in their order, as `study` has them; each with its metric's definition before its meaning."""
    return [
        dataclasses.replace(column, meaning=". ".join(part for part in (metric.definition, column.meaning) if part))
        for metric in metrics
        for column in (metric.columns_for(*study) if study else metric.columns)
    ]


def need_same_shape(name: str, samples: Samples, context: ScoreContext) -> None:
    """Raises `UserError` where there are not as many samples of the same length as in the reference set."""
    n, length = context.reference.x_NL.shape
    if samples.x_NL.shape != (n, length):
        raise UserError(
            f"{name} got samples of shape {samples.x_NL.shape} against a reference of {(n, length)}; "
            f"n and length must agree: use {n} samples of {length} tokens"
        )
