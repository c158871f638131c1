"""The scores of a study for a terminal: the headline columns in at most 80 characters, and where the rest is."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import ROLES, aggregate, columns_with_bound, headline, labelled
from harness.report.marks import ABOVE, BLIND, above_data, blind, resolutions
from harness.report.table import budget, markdown, measured, name_of

WIDTH = 80
_NAME, _GAP = 24, 2


def terminal_table(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """Rows as in the report's table; columns as many as fit, those that do not are named in the last line."""
    found = resolutions(frame, columns)
    header, rows = _cells(frame, columns, _NAME, blind(found, columns))
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
    copies = list(dict.fromkeys(column.title for column in columns if column.ceiling))
    if copies and any(ABOVE in row[0] for row in rows):
        lines += textwrap.wrap(
            f"({ABOVE} above held-out data's own value in {', '.join(copies)} or some of them)", WIDTH
        )
    return "\n".join([*lines, *(line for each in found for line in textwrap.wrap(str(each), WIDTH))])


def markdown_table(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """The same in Markdown, all columns but those aside, with the resolutions below."""
    lines = "\n".join(f"- {each}" for each in resolutions(frame, columns))
    table = markdown(*_cells(frame, [column for column in columns if not column.aside]))
    return f"{table}\n\n{lines}".rstrip()


def _cells(
    frame: pd.DataFrame, columns: Sequence[Column], widest: int = 0, unseen: Collection[str] = ()
) -> tuple[list[str], list[list[str]]]:
    shown = columns_with_bound([column for column in columns if not (widest and column.aside)])
    names = [column.name for column in columns_with_bound(columns)]
    table = aggregate(headline(labelled(frame)), names).reset_index(drop=True)
    above, rows = set[int]().union(*(above_data(table, column) for column in columns)), []
    for role in ROLES:
        for place, row in table[table["role"] == role].iterrows():
            name, mark = name_of(row).strip("*"), f" {ABOVE}" if place in above else ""
            room = widest - len(mark)
            short = (name if not widest or len(name) <= room else f"{name[: room - 3]}...") + mark
            scores = [measured(row[column.name], row[f"{column.name}_error"]) for column in shown]
            rows.append([short, budget(row), *scores])
    titles = [column.title + (f" {BLIND}" if column.name in unseen else "") for column in shown]
    return ["Method", "NFE", *titles], rows


def _put(text: str, width: int, place: int) -> str:
    return text.ljust(width) if place == 0 else text.rjust(width)
