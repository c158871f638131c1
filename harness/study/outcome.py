"""How a study or a search ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Lines to print, and what failed with the reason."""

    table: str
    places: list[str]
    failures: dict[str, str] = field(default_factory=dict)
