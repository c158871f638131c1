"""What each score means, in a sentence for the report, so that a number is never read without its definition."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics.base import Column

_BETTER = {"lower": "Lower is better", "higher": "Higher is better", "data": "The data's own value is the aim"}
_BUDGETS = (
    "- **NFE**: calls of a network while sampling one sequence, all of them, counted at the call itself. "
    "**Equivalent NFE**: FLOPs spent in sampling over FLOPs of one call of the baseline's network at the same length. "
    "**Seconds per sequence**: wall clock of sampling on the device named below, over the number of sequences."
)


def definitions(columns: Sequence[Column]) -> str:
    """`## Definitions`: a line for each column, and one for the budgets."""
    lines = ["## Definitions", ""]
    for column in columns:
        unit = f" ({column.unit})" if column.unit else ""
        meaning = column.meaning or f"column `{column.name}` of the results. {_BETTER[column.better]}"
        lines.append(f"- **{column.title}**{unit}: {meaning}.")
    return "\n".join([*lines, _BUDGETS])
