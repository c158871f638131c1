"""What more training changes: scores against training FLOPs, where the tasks of a study are trainings of different length."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import BOUND, aggregate, data_value, headline, labelled, with_labels
from harness.report.axes import plain_ticks, scale_y, ticks_y
from harness.report.canvas import new_figure
from harness.report.figures import BETTER, dress, reference_lines, save
from harness.report.pictures import choose_budgets
from harness.report.style import Style
from harness.report.table import UNKNOWN, markdown, name_of, number, score_of, title_of

FLOPS = "train_flops"
_PANEL = (5.4, 4.0)
_BESIDE = {"color": "#4a4a4a", "marker": "x", "linestyle": "--"}
_CAPTION = (
    "Each line is a method, each point a training of its own: {across}. Lines across are held-out data and what is "
    "not trained for longer."
)


def grown(frames: Mapping[str, pd.DataFrame], columns: Sequence[Column]) -> pd.DataFrame | None:
    """One row per label, NFE and training budget, as `aggregate` makes them, with `train_flops` and whether it `grows`.

    None unless all tasks are scored on the same data by the same protocol, and some method was trained with several budgets.
    `frames` by task, as `harness.report.aggregate` takes them.
    """
    if len(frames) < 2 or pd.concat(f[["data", "protocol"]] for f in frames.values()).drop_duplicates().shape[0] > 1:
        return None
    names = [column.name for column in (BOUND, *columns)]
    tables = []
    for frame in with_labels(*frames.values()):
        plain = headline(labelled(frame))
        spent = plain.groupby("label")[FLOPS].median()
        tables.append(aggregate(plain, names).assign(**{FLOPS: lambda t, spent=spent: t["label"].map(spent)}))
    table = pd.concat(tables, ignore_index=True)
    longer = table.groupby("label")[FLOPS].transform("nunique") > 1
    # A reference that is trained, as an autoregressive model, grows with the methods.
    table["grows"] = (table["role"] == "method") | longer
    return table if (longer & (table["role"] == "method")).any() else None


def growth_section(
    folder: Path, frames: Mapping[str, pd.DataFrame], columns: Sequence[Column], blind: Collection[str] = ()
) -> str:
    """`## What more training changes`: a figure and a table for each column and the bound; '' where nothing grew.

    Figures go to `folder/figures/growth_<column>.png`. `blind`: columns that are marked as such.
    """
    table = grown(frames, columns)
    if table is None:
        return ""
    parts = ["## What more training changes"]
    for column in (BOUND, *columns):
        path = folder / "figures" / f"growth_{column.name}.png"
        shown = _budgets(table, column)
        if not shown or not growth_figure(table, column, shown, path):
            continue
        across = "its bound" if shown == [None] else "a panel for each number of network calls"
        parts += [f"![{column.title} against training FLOPs](figures/{path.name})", _CAPTION.format(across=across)]
        parts.append(growth_table(table, column, shown, blind))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _budgets(table: pd.DataFrame, column: Column) -> list[float | None]:
    """The NFEs that get a panel and a column of the table; `[None]` for the bound, which belongs to no budget."""
    known = table[(table["role"] == "method") & np.isfinite(table[column.name])]
    if column.name == BOUND.name:
        return [None] if len(known) else []
    counted = known[known["nfe"] > 0].groupby("nfe")["label"].nunique()
    return list(choose_budgets([int(nfe) for nfe in counted[counted == counted.max()].index]))


def _at(table: pd.DataFrame, nfe: float | None, column: Column = BOUND) -> pd.DataFrame:
    """A row for each label and training budget at this NFE; None: any row that has the column's score."""
    if nfe is None:
        return table[table[column.name].notna()].drop_duplicates(["label", FLOPS])
    return table[table["nfe"] == nfe]


def growth_figure(table: pd.DataFrame, column: Column, budgets: Sequence[float | None], path: Path) -> Path | None:
    """One panel for each of `budgets`: the score against training FLOPs, both logarithmic where they span far."""
    grows, still = table[table["grows"]], table[~table["grows"]]
    wide = min(2, len(budgets))
    high = -(-len(budgets) // wide)
    figure = new_figure((_PANEL[0] * wide + 1, _PANEL[1] * high + 0.9))
    figure.suptitle(f"{column.title} ({BETTER[column.better]})", fontsize=13, x=0.01, ha="left")
    style = Style.of_table(table)
    drawn = []
    for place, nfe in enumerate(budgets):
        axes = figure.add_subplot(high, wide, place + 1)
        dress(axes, "" if nfe is None else f"NFE {nfe:g}", "Training FLOPs", column.heading)
        beside = grows[grows["role"] != "method"]
        rows = pd.concat([_at(grows[grows["role"] == "method"], nfe), _at(beside, None, column)])
        everything = pd.concat([rows, still])
        scale_y(axes, column, everything[column.name].tolist(), everything[f"{column.name}_error"].tolist())
        for (role, label), group in rows.groupby(["role", "label"], sort=False):
            look = style.of(str(label)) if role == "method" else _BESIDE
            _line(axes, group.sort_values(FLOPS), column, look | {"label": str(label)})
        axes.set_xscale("log")
        reference_lines(axes, still, column.name)
        ticks_y(axes)
        # Equal budgets differ by a step or two from method to method: a tick for each that can be told apart.
        plain_ticks(axes.xaxis, sorted({round(math.log10(flops), 1): flops for flops in rows[FLOPS].dropna()}.values()))
        axes.xaxis.set_major_formatter(lambda value, _: number(value, 2))
        drawn.append(axes)
    return save(figure, drawn, path, 64 * wide)


def _line(axes: Any, rows: pd.DataFrame, column: Column, look: Mapping[str, Any]) -> None:
    axes.errorbar(rows[FLOPS], rows[column.name], np.nan_to_num(rows[f"{column.name}_error"]), linewidth=2, markersize=6,
                  capsize=3, zorder=3, **look)  # fmt: skip


def growth_table(table: pd.DataFrame, column: Column, budgets: Sequence[float | None], blind: Collection[str]) -> str:
    """A row for each method and training budget, a column for each NFE; data and references below, at no budget."""
    rows = []
    for _, group in table[table["grows"]].groupby(["role", "label"], sort=False):
        for flops in sorted(set(group[FLOPS])):
            own = group[group[FLOPS] == flops]
            cells = [_shown(_at(own, nfe), column) for nfe in budgets]
            if any(cell != UNKNOWN for cell in cells):
                rows.append([name_of(group.iloc[0]), number(flops), *cells])
    for role in ("data", "reference"):
        for _, group in table[(table["role"] == role) & ~table["grows"]].groupby("label", sort=False):
            if group[column.name].notna().any():
                rows.append([name_of(group.iloc[0]), UNKNOWN, _shown(_at(group, None, column), column)])
    title = title_of(column, blind, data_value(table, column.name))
    header = ["Method", "Training FLOPs", *(title if nfe is None else f"{title} at NFE {nfe:g}" for nfe in budgets)]
    return markdown(header, [row + [""] * (len(header) - len(row)) for row in rows])


def _shown(rows: pd.DataFrame, column: Column) -> str:
    return score_of(rows.iloc[0], column, bold=False) if len(rows) else UNKNOWN
