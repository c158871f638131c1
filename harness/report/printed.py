"""What others have printed of a method, beside what was measured here at the same NFE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from harness.metrics.base import PRINTED, PRINTED_IN, Column
from harness.report.aggregate import aggregate, headline, labelled
from harness.report.table import UNKNOWN, markdown, measured

_CAPTION = (
    "In print: {sources}. NFE as each source counts it; judge, number of samples, precision and sampler may be others there. "
    "{unknown}: not in print, or not measured."
)


def printed_section(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """`### Beside what is in print` with two rows for each method and column, measured and printed; '' where nothing is.

    `frame` is described in `harness.report.aggregate`; it holds one data set and one protocol.
    """
    shown = [c for c in columns if f"{PRINTED}{c.name}" in frame and frame[f"{PRINTED}{c.name}"].notna().any()]
    if not shown:
        return ""
    made = labelled(frame)
    table = aggregate(headline(made), [name for c in shown for name in (c.name, f"{PRINTED}{c.name}")])
    told = table[table[[f"{PRINTED}{c.name}" for c in shown]].notna().any(axis=1)]
    table = table[table["label"].isin(told["label"])]
    budgets = sorted(set(table["nfe"]))
    rows = []
    for label, group in table.groupby("label", sort=False):
        by_nfe = {row["nfe"]: row for _, row in group.iterrows()}
        for c in shown:
            here = [_cell(by_nfe, nfe, c.name, f"{c.name}_error") for nfe in budgets]
            there = [_cell(by_nfe, nfe, f"{PRINTED}{c.name}") for nfe in budgets]
            rows += [[str(label), f"{c.heading}, here", *here], ["", "in print", *there]]
    sources = made.loc[made[PRINTED_IN].notna(), ["label", PRINTED_IN]].drop_duplicates()
    said = "; ".join(f"{label}: {source}" for label, source in sources.itertuples(index=False))
    caption = _CAPTION.format(sources=said, unknown=UNKNOWN)
    header = ["Method", "", *(f"NFE {nfe:.0f}" for nfe in budgets)]
    return f"### Beside what is in print\n\n{markdown(header, rows)}\n\n{caption}"


def _cell(by_nfe: dict[float, pd.Series], nfe: float, name: str, error: str = "") -> str:
    if nfe not in by_nfe:
        return UNKNOWN
    row = by_nfe[nfe]
    return measured(float(row[name]), float(row[error]) if error else math.nan)
