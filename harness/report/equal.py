"""The table at equal sampling FLOPs: for each budget of equivalent calls the row of each method that spends most of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import EQUIVALENT, aggregate, headline, labelled
from harness.report.table import best_rows, budget, markdown, name_of, number, score_of, title_of

#: Counted on other sequences, a budget that was met to the last call may be above by so much.
_SLACK = 1.005


def equal_rows(frame: pd.DataFrame, columns: Sequence[Column], budgets: Sequence[float]) -> pd.DataFrame:
    """Aggregated rows of methods (see `harness.report.aggregate.aggregate`), with a column `equal_budget`.

    For each budget the row of each label with the most calls of those whose FLOPs are within it; what nobody asked to be
    within a budget (one call a token) comes in at the first that it fits.
    """
    names = [EQUIVALENT.name, *(column.name for column in columns)]
    table = aggregate(headline(labelled(frame)), names)
    table = table[(table["role"] == "method") & table[EQUIVALENT.name].notna()]
    found = []
    for limit in sorted(budgets):
        within = table[table[EQUIVALENT.name] <= limit * _SLACK].sort_values("nfe", kind="stable")
        found.append(within.groupby("label", sort=False).tail(1).assign(equal_budget=limit))
    made = pd.concat(found) if found else table.iloc[:0].assign(equal_budget=[])
    places = {label: place for place, label in enumerate(dict.fromkeys(table["label"]))}
    order = made.assign(_place=made["label"].map(places)).sort_values(["equal_budget", "_place"], kind="stable")
    return order.drop(columns="_place").reset_index(drop=True)


def strict_rows(frame: pd.DataFrame, budgets: Sequence[int]) -> pd.DataFrame:
    """The frame without what methods drew for a budget of equal FLOPs alone; `budgets`: the strict ones (none: all rows).

    A method that has none of them keeps what it has.
    """
    asked = frame["nfe"].isin(list(budgets)) | (frame["role"] != "method")
    other = ~asked.groupby([frame["method"], frame["sampler"].fillna("")]).transform("any")
    return frame[asked | other] if len(budgets) else frame


def equal_table(
    frame: pd.DataFrame, columns: Sequence[Column], budgets: Sequence[float], blind: Collection[str] = ()
) -> str:
    """Scores of the methods at each budget of equal sampling FLOPs; '' where the study has none of them.

    `blind`: names of columns that are marked as such.
    """
    shown = [column for column in columns if column.better != "data"]
    rows = equal_rows(frame, shown, budgets)
    if rows.empty or not shown:
        return ""
    as_budget = rows.assign(nfe=rows["equal_budget"])
    bold = {column.name: best_rows(as_budget, column) for column in shown}
    header = ["Method", "Budget", "NFE", "Spent", *(title_of(column, blind) for column in shown)]
    lines = []
    for place, row in rows.iterrows():
        cells = [name_of(row), number(row["equal_budget"]), budget(row), number(row[EQUIVALENT.name])]
        lines.append([*cells, *(score_of(row, column, place in bold[column.name]) for column in shown)])
    caption = (
        "Budget and Spent: FLOPs of sampling a sequence over those of one call of the baseline's network. Each method has as "
        "many calls as fit into the budget. Bold: best at that budget, by the same rule as above."
    )
    return markdown(header, lines) + "\n\n" + caption
