"""How each row is drawn: colours and markers for methods; black and grey, told apart by dashes, for what is not compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

# Okabe and Ito (2008), told apart with any common colour blindness; yellow is left out, it is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FLOOR = {"color": "#000000", "linewidth": 1.4, "markersize": 5}
_FLOOR_DASHES: tuple[Any, ...] = ("--", (0, (8, 2)), (0, (2, 2)), (0, (10, 3, 4, 3)))
_FLOOR_MARKERS = (".", "1", "2", "3")
_PROBE = {"color": "#4a4a4a", "linewidth": 1.0, "markersize": 4}
_PROBE_DASHES: tuple[Any, ...] = ("-.", (0, (8, 2, 1, 2, 1, 2)), (0, (3, 1, 1, 1)), (0, (12, 3, 2, 3)))
_PROBE_MARKERS = ("x", "+", "*", "d")


class Style:
    """Looks by role and place: of methods among `labels`, of floors and probes among their own."""

    def __init__(self, labels: Sequence[str], floors: Sequence[str] = (), probes: Sequence[str] = ()) -> None:
        self._place, self._floor, self._probe = (
            {label: place for place, label in enumerate(dict.fromkeys(each))} for each in (labels, floors, probes)
        )

    @classmethod
    def of_table(cls, table: pd.DataFrame) -> Style:
        """The style of an aggregated table's rows, in its order."""
        return cls(*(list(table.loc[table["role"] == role, "label"]) for role in ("method", "floor", "probe")))

    def of(self, label: str) -> dict[str, str]:
        """Colour, marker and line of a method."""
        place = self._place[label]
        turn = place // len(_COLOURS)
        return {
            "color": _COLOURS[place % len(_COLOURS)],
            # The second round of colours starts the markers one later, so that no pair comes back.
            "marker": _MARKERS[(place + turn) % len(_MARKERS)],
            "linestyle": ("-", "--", ":", "-.")[turn % 4],
        }

    def beside(self, label: str) -> dict[str, Any]:
        """The whole look of a floor (black, dashed) or a probe (dark grey, thin, dash-dotted)."""
        if label in self._floor:
            place, look, dashes, markers = self._floor[label], _FLOOR, _FLOOR_DASHES, _FLOOR_MARKERS
        else:
            place, look, dashes, markers = self._probe[label], _PROBE, _PROBE_DASHES, _PROBE_MARKERS
        turn = place // len(dashes)
        return look | {
            "linestyle": dashes[place % len(dashes)],
            "marker": markers[(place + turn) % len(markers)],
        }
