"""The scores of a study for a terminal: the headline columns in at most 80 characters, and where the rest is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import ROLES, aggregate, columns_with_bound, headline, labelled
from harness.report.table import budget, markdown, measured, name_of

WIDTH = 80
_NAME, _GAP = 24, 2


def terminal_table(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """Rows as in the report's table; columns as many as fit, those that do not are named in the last line."""
    header, rows = _cells(frame, [column for column in columns if not column.aside], _NAME)
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    fitting = [place for place in range(len(header)) if sum(widths[: place + 1]) + _GAP * place <= WIDTH]
    lines = [
        (" " * _GAP).join(_put(row[place], widths[place], place) for place in fitting).rstrip()
        for row in [header, *rows]
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    left = [header[place] for place in range(len(header)) if place not in fitting]
    left += [column.title for column in columns if column.aside]
    if left:
        lines += textwrap.wrap(f"({', '.join(left)}: in the report)", WIDTH)
    return "\n".join(lines)


def markdown_table(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """The same in Markdown, all columns."""
    return markdown(*_cells(frame, columns))


def _cells(frame: pd.DataFrame, columns: Sequence[Column], widest: int = 0) -> tuple[list[str], list[list[str]]]:
    shown = columns_with_bound(columns)
    table = aggregate(headline(labelled(frame)), [column.name for column in shown])
    rows = []
    for role in ROLES:
        for _, row in table[table["role"] == role].iterrows():
            name = name_of(row).strip("*")
            short = name if not widest or len(name) <= widest else f"{name[: widest - 3]}..."
            scores = [measured(row[column.name], row[f"{column.name}_error"]) for column in shown]
            rows.append([short, budget(row), *scores])
    return ["Method", "NFE", *(column.title for column in shown)], rows


def _put(text: str, width: int, place: int) -> str:
    return text.ljust(width) if place == 0 else text.rjust(width)
