"""The report of a study: `report.md` with tables, figures, samples and where the numbers come from."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.metrics.base import Column
from harness.report import figures
from harness.report.aggregate import BOUND, columns_with_bound, labelled, tradeoff, with_labels
from harness.report.elsewhere import elsewhere_section
from harness.report.equal import equal_table, strict_rows
from harness.report.latex import latex_table
from harness.report.marks import blind, resolutions
from harness.report.opening import opening
from harness.report.pictures import COLUMNS, ROWS, Block, picture_sheet
from harness.report.printed import printed_section
from harness.report.table import (
    cost_table,
    definitions,
    frontier_table,
    number,
    profile_table,
    score_tables,
    under_headings,
)
from harness.report.truth import truth_section
from harness.store import write_text

_EXCERPT = 400
#: What a report says of its origin, in this order.
PROVENANCE = {
    "judge": "Judge",
    "judge_ppl": "Judge's perplexity on held-out text",
    "n": "Sequences per score",
    "seeds": "Training seeds",
    "device": "Device",
    "protocol": "Protocol",
    "command": "Command",
    "git_sha": "Code",
}


def write_report(folder: Path, frame: pd.DataFrame, columns: Sequence[Column], context: Mapping[str, Any]) -> Path:
    """Write `report.md`, `table.tex` and figures into `folder` and return the path of the first.

    `frame`: results (see `harness.report.aggregate`); rows of different data or protocols get sections of their own.
    `columns`: those of the study's metrics. `context`, all optional: `title`; `judge`,
    `judge_ppl`, `n`, `seeds`, `device`, `protocol`, `command`, `git_sha`; `data` (a mapping of facts); `provenance`
    (a mapping of versions and the like); `notes` (lines); `samples` (rows with title, nfe, text and optionally
    temperature); `pictures` (blocks of `harness.report.pictures`); `curves` (by title of the figure: unit, and series as
    `harness.report.figures.curves` takes them); `equivalent_nfe` (budgets of a table at equal
    sampling FLOPs) beside `nfe` (those of the other tables); `profiles`
    (by title: rows as `harness.report.table.profile_table` takes them); `elsewhere` (rows of `harness.report.elsewhere`).
    """
    folder = Path(folder)
    parts, tables = [f"# {context.get('title', 'Results')}"], list[str]()
    (frame,) = with_labels(frame)
    sections = list(frame.groupby(["data", "protocol"], sort=True, dropna=False))
    told = {key: resolutions(part, columns) for key, part in sections}
    notes = [*(str(each) for found in told.values() for each in found), *(context.get("notes") or [])]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    scores_at = len(parts)
    for (data, protocol), part in sections:
        unseen = blind(told[data, protocol], columns)
        if len(sections) == 1:
            made, own = _section(folder, part, columns, context, unseen)
        else:
            name = f"{data}, protocol {protocol}", f"{_slug(str(data))}_{_slug(str(protocol))[:12]}_"
            made, own = _section(folder, part, columns, {**context, "profiles": None}, unseen, *name)
        parts, tables = [*parts, *made], [*tables, *own]
    if len(sections) == 1:
        parts.insert(scores_at, opening(folder, columns, context.get("samples") or []))
    compared = list(frame.loc[frame["role"] == "method", "label"])
    parts.append(_curves(folder, context.get("curves") or {}, compared))
    parts.append(elsewhere_section(context.get("elsewhere") or []))
    parts.append(_pictures(folder, context.get("pictures") or []))
    parts.append(_samples(context.get("samples") or []))
    with_bound = columns_with_bound(columns) if _has(frame, BOUND.name) else list(columns)
    parts.append(definitions(with_bound))
    parts.append(_provenance(context))
    path = folder / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    write_text(folder / "table.tex", "\n".join(map(latex_table, tables)))
    return path


def _section(
    folder: Path,
    part: pd.DataFrame,
    columns: Sequence[Column],
    context: Mapping[str, Any],
    unseen: Collection[str],
    heading: str = "Scores",
    prefix: str = "",
) -> tuple[list[str], list[str]]:
    """Markdown of the rows of one protocol, and those of its tables that LaTeX has too; draws figures named `prefix`..."""
    main = [column for column in columns if not column.aside]
    tables = score_tables(strict_rows(part, context.get("nfe") or ()), columns, unseen)
    parts = under_headings(heading, tables)
    parts += [profile_table(title, rows) for title, rows in (context.get("profiles") or {}).items()]
    equal = equal_table(part, main, context.get("equivalent_nfe") or (), unseen)
    if equal:
        parts.append(f"### At equal sampling FLOPs\n\n{equal}")
    parts.append(truth_section(part))
    parts.append(printed_section(part, columns))
    swept = frontier_table(part, main)
    if swept:
        parts.append(f"### At the diversity of the data\n\n{swept}")
    parts.append(f"### Cost\n\n{cost_table(part)}")
    parts.append("### Figures\n\n" + "\n\n".join(_figures(folder, labelled(part), main, prefix)))
    return parts, tables


def _has(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and bool(frame[name].notna().any())


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "x"


def _embed(path: Path, folder: Path, title: str) -> str:
    return f"![{title}]({path.relative_to(folder).as_posix()})"


def _figures(folder: Path, part: pd.DataFrame, columns: Sequence[Column], prefix: str) -> list[str]:
    """Draw what can be drawn of one section; returns Markdown lines."""
    made = []
    for budget, title in figures.BUDGETS.items():
        for column in columns:
            path = folder / "figures" / f"{prefix}{column.name}_{budget}.png"
            if figures.scores(part, column, budget, path):
                made.append(_embed(path, folder, f"{column.title} against {title}"))
    sides = tradeoff(columns)
    if sides:
        path = folder / "figures" / f"{prefix}{sides[0].name}_{sides[1].name}.png"
        if figures.plane(part, sides, path):
            made.append(_embed(path, folder, f"{sides[0].title} against {sides[1].title}"))
    return made or ["None: no method has a score at a known budget."]


def _curves(folder: Path, wanted: Mapping[str, Any], labels: Sequence[str]) -> str:
    made = []
    for title, curve in wanted.items():
        path = folder / "figures" / f"curve_{_slug(title)}.png"
        if figures.curves(curve["series"], path, title, curve["unit"], labels):
            made.append(_embed(path, folder, title))
    return "## Training\n\n" + "\n\n".join(made) if made else ""


def _pictures(folder: Path, blocks: Sequence[Block]) -> str:
    path = folder / "figures" / "pictures.png"
    if not picture_sheet(blocks, path):
        return ""
    line = f"The first {ROWS * COLUMNS} of each at temperature 1 (or the first temperature), one seed, not chosen."
    return f"## Pictures\n\n{line}\n\n{_embed(path, folder, 'Samples as pictures')}"


def _samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first sample of each method, NFE and temperature, shortened, in a fence that it cannot close."""
    seen: set[tuple[Any, ...]] = set()
    parts = []
    for row in rows:
        key = (row["title"], row.get("nfe"), row.get("temperature"))
        if key in seen:
            continue
        seen.add(key)
        text = str(row["text"])
        shown = text if len(text) <= _EXCERPT else text[:_EXCERPT].rstrip() + " ..."
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
        budget = "" if row.get("nfe") is None else f", NFE {row['nfe']}"
        heat = "" if row.get("temperature") in (None, 1, 1.0) else f", T={row['temperature']:g}"
        parts.append(f"**{row['title']}{budget}{heat}**\n\n{fence}text\n{shown}\n{fence}")
    return "## Samples\n\nThe first of each, not chosen.\n\n" + "\n\n".join(parts) if parts else ""


def _provenance(context: Mapping[str, Any]) -> str:
    lines = []
    for name, title in PROVENANCE.items():
        value = context.get(name)
        if value is None:
            continue
        if isinstance(value, float):
            value = number(value, 4)
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        lines.append(f"- {title}: `{value}`")
    for heading, name in (("Data", "data"), ("Machine and versions", "provenance")):
        for key, value in dict(context.get(name) or {}).items():
            inner = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            lines.append(f"- {heading}, {str(key).replace('_', ' ')}: `{inner}`")
    return "## Where the numbers come from\n\n" + "\n".join(lines) if lines else ""
