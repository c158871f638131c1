"""The report of a study with tasks: a table for each, and each headline score against NFE with a panel for each task."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import CURVES, aggregate, headline, labelled, with_labels
from harness.report.axes import ticks_y
from harness.report.canvas import new_figure
from harness.report.figures import BETTER, BUDGETS, draw_curves, dress, of_scale, save
from harness.report.growth import growth_section
from harness.report.marks import blind, resolutions
from harness.report.report import PROVENANCE
from harness.report.style import Style
from harness.report.table import definitions, score_tables, under_headings
from harness.report.truth import truth_section
from harness.store import ResultsTable, write_text

_PANEL = (5.4, 4.0)
#: References are told apart by their dashes, since colours are the methods'.
_DASHES: tuple[Any, ...] = ((0, (4, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)), (0, (2, 4)))
_SHARED = ("n", "seeds", "device", "command", "git_sha")


@dataclass(frozen=True)
class TaskResults:
    """What is known of one task: its rows so far (None: nothing yet), how many there will be, and lines about it."""

    name: str
    frame: pd.DataFrame | None
    expected: int
    columns: Sequence[Column] = ()
    notes: Sequence[str] = ()


def write_suite_report(folder: Path, tasks: Sequence[TaskResults], context: Mapping[str, Any]) -> Path:
    """Write `report.md`, `results.parquet` and `figures/<score>.png` into `folder`; returns the path of the first.

    `tasks` in the order of the study, at least one of them with rows. `context`, all optional: `title`, `question`, `n`,
    `seeds`, `device`, `command`, `git_sha`. Each file is replaced in one step; figures of scores that no task has any
    more are taken away.
    """
    folder = Path(folder)
    known = [task for task in tasks if task.frame is not None and len(task.frame)]
    frames = [task.frame for task in known if task.frame is not None]
    rows = [{str(name): value for name, value in row.items()} for f in frames for row in f.to_dict("records")]
    numbers = dict.fromkeys(str(name) for frame in frames for name, kind in frame.dtypes.items() if kind != "string")
    ResultsTable(rows, list(numbers)).write(folder / "results.parquet")
    shown = dict(zip((task.name for task in known), with_labels(*frames), strict=True))
    columns = {column.name: column for task in known for column in task.columns}
    main = [column for column in columns.values() if not column.aside]
    drawn = {
        path: column for column in main if (path := panels(shown, column, folder / "figures" / f"{column.name}.png"))
    }
    told = {task.name: resolutions(shown[task.name], task.columns) for task in known}
    unseen = {task.name: blind(told[task.name], task.columns) for task in known}
    parts = [f"# {context.get('title', 'Results')}", str(context.get("question") or ""), _overview(tasks)]
    notes = [f"- {task.name}: {note}" for task in tasks for note in (*told.get(task.name, ()), *task.notes)]
    parts.append("\n".join(notes))
    if drawn:
        embedded = [f"![{column.title} against NFE](figures/{path.name})" for path, column in drawn.items()]
        parts.append("## Figures\n\n" + "\n\n".join(embedded))
    parts.append(growth_section(folder, shown, main, set[str]().union(*unseen.values())))
    parts += [_of_task(task, shown[task.name], unseen[task.name]) for task in known]
    parts.append(definitions(list(columns.values())))
    facts = [f"- {PROVENANCE[name]}: `{context[name]}`" for name in _SHARED if context.get(name) is not None]
    facts.append("- Data, judge, protocol and versions: in the report of each task.")
    parts.append("## Where the numbers come from\n\n" + "\n".join(facts))
    path, text = folder / "report.md", "\n\n".join(part for part in parts if part) + "\n"
    for figure in (folder / "figures").glob("*.*"):
        if f"figures/{figure.stem}.png" not in text:
            figure.unlink()
    write_text(path, text)
    return path


def _of_task(task: TaskResults, frame: pd.DataFrame, unseen: Collection[str]) -> str:
    """The tables of one task: the headline scores, those that stand aside, distances from the truth."""
    parts = [*under_headings(task.name, score_tables(frame, task.columns, unseen)), truth_section(frame)]
    return "\n\n".join(part for part in parts if part)


def _overview(tasks: Sequence[TaskResults]) -> str:
    lines = ["| Task | Data | Rows of results | Report |", "|:--|:--|--:|:--|"]
    for task in tasks:
        count = 0 if task.frame is None else len(task.frame)
        data = ", ".join(sorted(set(task.frame["data"]))) if task.frame is not None and count else "—"
        rows = f"{count} of {task.expected}" if count else "none under this configuration"
        report = f"[{task.name}/report.md]({task.name}/report.md)" if count else "—"
        lines.append(f"| {task.name} | {data} | {rows} | {report} |")
    return "\n".join(lines)


def panels(frames: Mapping[str, pd.DataFrame], column: Column, path: Path) -> Path | None:
    """One score against NFE: a panel for each task where a method, floor or probe has it; None where there is no panel.

    Each panel has its own y axis: logarithmic where all values are clear of 0 and span far, and with a linear part of
    stated width where some are not (a score that can be 0 or less is never cut off).
    """
    alike = with_labels(*frames.values())
    tables = {t: aggregate(headline(labelled(f)), [column.name]) for t, f in zip(frames, alike, strict=True)}
    tables = {task: table for task, table in tables.items() if _is_drawn(table, column.name)}
    if not tables:
        return None
    wide = 1 if len(tables) == 1 else 2 if len(tables) <= 4 else 3
    high = math.ceil(len(tables) / wide)
    figure = new_figure((_PANEL[0] * wide, _PANEL[1] * high + 0.9))
    figure.suptitle(f"{column.title} ({BETTER[column.better]})", fontsize=13, x=0.01, ha="left")
    shown = pd.concat(table for table in tables.values())
    style = Style.of_table(shown)
    references = list(dict.fromkeys(shown.loc[shown["role"] == "reference", "label"]))
    drawn = []
    for place, (task, table) in enumerate(tables.items()):
        axes = figure.add_subplot(high, wide, place + 1)
        dress(axes, task, BUDGETS["nfe"], column.heading)
        draw_curves(axes, table, column, "nfe", style)
        for _, row in of_scale(table, column.name).iterrows():
            of_data = row["role"] == "data"
            dashes = "-" if of_data else _DASHES[references.index(row["label"]) % len(_DASHES)]
            axes.axhline(row[column.name], color="#222222" if of_data else "#6e6e6e", linewidth=1.3, zorder=1,
                         linestyle=dashes, label=row["label"])  # fmt: skip
        ticks_y(axes)
        drawn.append(axes)
    return save(figure, drawn, path, 64 * wide)


def _is_drawn(table: pd.DataFrame, name: str) -> bool:
    return bool((table["role"].isin(CURVES) & np.isfinite(table[name]) & (table["nfe"] > 0)).any())
