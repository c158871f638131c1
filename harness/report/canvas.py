"""Figures in memory and their PNG files, without matplotlib's global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

from harness.store import write_bytes

DPI = 150


def new_figure(size: tuple[float, float], dpi: int = DPI, layout: Literal["constrained"] | None = "constrained") -> Any:
    """A figure of `size` inches with a canvas of its own."""
    # Imported late: commands that draw nothing should not wait a second for matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Any, path: Path) -> Path:
    """Replace `path` in one step; equal figures are equal bytes."""
    buffer = io.BytesIO()
    # The software's version would make equal figures different files.
    figure.savefig(buffer, format="png", dpi=figure.dpi, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path
