"""What is marked where numbers are read: rows above what text has, and columns whose judge cannot tell text from counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import aggregate, data_value, headline, is_below, labelled

ABOVE, BLIND = "▲", "†"


@dataclass(frozen=True)
class Resolution:
    """How far a column is between held-out data and the nearest row that calls no network; above 0 where data are better."""

    column: Column
    data: float
    label: str
    value: float

    @property
    def gap(self) -> float:
        return self.data - self.value if self.column.better == "higher" else self.value - self.data

    @property
    def resolves(self) -> bool:
        return self.gap >= self.column.least_gap

    def __str__(self) -> str:
        c = self.column
        found = (
            f"Resolution, {c.title}: held-out data {self.data:.3f}, {self.label} {self.value:.3f}, {self.gap:.3f} apart"
        )
        if self.resolves:
            return f"{found} ({c.least_gap:g} is enough)"
        return f"{found}, less than {c.least_gap:g}: {BLIND} what lies between cannot be ranked"


def resolutions(frame: pd.DataFrame, columns: Sequence[Column]) -> list[Resolution]:
    """One for each column with a `least_gap`, where the frame has held-out data and a reference at NFE 0."""
    asked = [column for column in columns if column.least_gap]
    table = aggregate(headline(labelled(frame)), [column.name for column in asked])
    counted = table[(table["role"] == "reference") & (table["nfe"] == 0)]
    found = []
    for column in asked:
        data = data_value(table, column.name)
        own = [
            Resolution(column, data, str(row["label"]), float(row[column.name]))
            for _, row in counted[counted[column.name].notna()].iterrows()
        ]
        found += [min(own, key=lambda each: each.gap)] if own and data == data else []
    return found


def blind(found: Sequence[Resolution], columns: Sequence[Column]) -> set[str]:
    """Names of the columns that cannot rank what lies between text and counts."""
    failing = {each.column.name for each in found if not each.resolves}
    return {column.name for column in columns if (column.judged_by or column.name) in failing}


def above_data(table: pd.DataFrame, column: Column) -> set[int]:
    """Index labels of rows of an aggregated table that lie above held-out data beyond doubt, where that is a ceiling."""
    data = table[table["role"] == "data"]
    if not column.ceiling or data.empty:
        return set()
    name = f"{column.name}_of_seeds"
    aim = data[name].iloc[0]
    others = table[(table["role"] != "data") & table[column.name].notna() & table[f"{column.name}_error"].notna()]
    return {place for place in others.index.tolist() if is_below(aim, others.loc[place, name])}
