"""What a report begins with: one picture of quality against the cost of sampling, and what was drawn at few calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.metrics.base import Column
from harness.report.aggregate import tradeoff
from harness.report.table import UNKNOWN, markdown

#: The budget whose samples are shown, or the nearest one that there is; characters of each.
_CALLS, _WIDTH = 4, 100
_BETTER = {"lower": "lower", "higher": "higher", "data": "nearer to the data"}
#: Costs of sampling, the first that was drawn is shown.
_COSTS = {"equivalent_nfe": "what sampling costs, in calls of the baseline's network", "nfe": "network calls"}


def opening(folder: Path, columns: Sequence[Column], samples: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of both; '' where there is neither. Figures are looked for where the report has drawn them.

    `samples`: rows with title, nfe, text and optionally temperature, the first of each not chosen.
    """
    parts = [part for part in (_picture(folder, columns), _few_calls(samples)) if part]
    return "\n\n".join(["## At a glance", *parts]) if parts else ""


def _picture(folder: Path, columns: Sequence[Column]) -> str:
    sides = tradeoff(columns)
    column = sides[0] if sides else next(iter(columns), None)
    for cost, meaning in _COSTS.items():
        path = folder / "figures" / f"{column.name}_{cost}.png" if column else None
        if column and path and path.exists():
            line = (
                f"Each curve is a method, each point a budget. To the right: {meaning}. Up and down: {column.title}, "
                f"{_BETTER[column.better]} is better. Lines across are held-out data and samplers without a budget."
            )
            return f"{line}\n\n![{column.title} against the cost of sampling]({path.relative_to(folder).as_posix()})"
    return ""


def _few_calls(samples: Sequence[Mapping[str, Any]]) -> str:
    """A table of the first sample of each label at the budget nearest to 4 calls; what has no budgets has its only one."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in samples:
        kept = first.get(row["title"])
        if kept is None or _distance(row) < _distance(kept):
            first[row["title"]] = row
    if not first:
        return ""
    rows = [
        [label, UNKNOWN if row.get("nfe") is None else f"{row['nfe']}", f"`{_excerpt(str(row['text']))}`"]
        for label, row in first.items()
    ]
    return markdown(["", "NFE", "The first sample, not chosen"], rows)


def _distance(row: Mapping[str, Any]) -> tuple[float, float]:
    temperature = row.get("temperature")
    return abs((row.get("nfe") or 0) - _CALLS), abs((1.0 if temperature is None else temperature) - 1.0)


def _excerpt(text: str) -> str:
    """One line that no code span or table can break."""
    line = " ".join(text.replace("`", "'").split()) or " "
    return line if len(line) <= _WIDTH else line[:_WIDTH].rstrip() + " ..."
