"""The bounds of a study's methods on other corpora (`harness.study.elsewhere`), as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.table import markdown, measured

_ABOUT = (
    "Upper bounds on -ln p(x) of test sequences of corpora that nothing was trained on, in the tokens of this study."
)


def elsewhere_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each corpus, method and training seed; "" where there is none."""
    head = ["Corpus", "Method", "Seed", "nats/token", "nats/character", "Sequences", "Own test text, nats/token"]
    lines = []
    for row in rows:
        own = row["own_nats_per_token"]
        values = [_measured(row, name) for name in ("nats_per_token", "nats_per_character")]
        lines.append(
            [
                row["data"],
                row["title"],
                str(row["seed"]),
                *values,
                str(row["sequences"]),
                "—" if own is None else f"{own:.3f}",
            ]
        )
    return markdown(head, lines) if lines else ""


def elsewhere_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of a report; "" without rows."""
    return f"## On other corpora\n\n{_ABOUT}\n\n{elsewhere_table(rows)}" if rows else ""


def _measured(row: Mapping[str, Any], name: str) -> str:
    error = row[f"{name}_se"]
    return measured(row[name], math.nan if error is None else error)
