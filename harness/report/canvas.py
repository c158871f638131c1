"""Figures in memory and their files, without matplotlib's global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

from harness.store import write_bytes

DPI = 150
#: What is written beside each PNG, for papers.
VECTORS: tuple[str, ...] = ("pdf", "svg")
_NAMELESS = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Date": None},
}


def new_figure(size: tuple[float, float], dpi: int = DPI, layout: Literal["constrained"] | None = "constrained") -> Any:
    """A figure of `size` inches with a canvas of its own."""
    # Imported late: commands that draw nothing should not wait a second for matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Any, path: Path) -> Path:
    """Replace `path`, a PNG, and the same as PDF and SVG beside it, each in one step; equal figures are equal bytes."""
    from matplotlib import rc_context  # late, as above

    with rc_context({"svg.hashsalt": "figure"}):
        for kind in ("png", *VECTORS):
            buffer = io.BytesIO()
            # The software's version and the time would make equal figures different files.
            figure.savefig(buffer, format=kind, dpi=figure.dpi, metadata=_NAMELESS[kind])
            write_bytes(path.with_suffix(f".{kind}"), buffer.getvalue())
            figure.set_layout_engine("none")  # it is found: the others need not look for it again
    return path
