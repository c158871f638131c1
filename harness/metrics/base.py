"""A metric turns samples into numbers with standard errors; each names its columns, units and direction.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from harness.data.base import TokenData
from harness.judges.base import Judge


@dataclass(frozen=True)
class Column:
    """A column of the results: `name` in the parquet (its standard error is `name_se`), a title and a unit for people.

    `better` says which way is better: "lower", "higher", or "data" where the data's own value is the aim. Columns that
    are not `headline` are in the parquet and in tracking, but not in the printed table or the figures.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher", "data"]
    headline: bool = True


@dataclass(frozen=True)
class Samples:
    """Token ids (N, L) and their decoded texts, in the same order."""

    x_NL: np.ndarray
    texts: list[str]


@dataclass(frozen=True)
class ScoreContext:
    """What scoring needs besides the samples: the reference set is fixed for a study and shared by all rows.

    `reference` has the same n and length as the samples; `cache` holds features by content hash; `seed` fixes
    bootstrap and k-means seeds.
    """

    data: TokenData
    reference: Samples
    judge: Judge
    cache: Path
    seed: int


@dataclass(frozen=True)
class Scores:
    """`values[name] = (value, standard error)` for each column; `per_sequence[name]` is (N,) where it exists."""

    values: dict[str, tuple[float, float]]
    per_sequence: dict[str, np.ndarray] = field(default_factory=dict)


class Metric(ABC):
    """Built as `cls(options)`; `version` changes whenever the definition does and is part of the protocol's identity.

    `definition` says in one sentence what the number is.
    """

    Options: type
    version: str = "1"
    definition: str = ""
    columns: tuple[Column, ...] = ()

    def __init__(self, options) -> None:
        self.options = options

    @abstractmethod
    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """Score one set of samples."""
