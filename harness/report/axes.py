"""Axes of the figures: logarithmic where values span far, with a linear part around 0 that is named, and plain ticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.metrics.base import Column

#: Characters of a line of a label at the y axis.
LABEL = 42


def plain_ticks(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Numbers instead of powers on a logarithmic axis; minor ticks are labelled where there is under a decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    low, high = axis.get_view_interval()
    parts = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axis.set_major_locator(FixedLocator(ticks) if ticks is not None else LogLocator(10, parts))


def linear_range(values: Sequence[float], errors: Sequence[float]) -> float | None:
    """Half-width of a symmetric logarithmic axis' linear part, 1, 2 or 5 times a power of ten; None: all are above 0.

    A value that is not above 0 by two standard errors cannot be placed on a logarithmic axis. The linear part holds
    those that lie within two errors of 0, or reaches to the smallest distance from 0 where none does.
    """
    v, e = np.asarray(values, dtype=float), np.nan_to_num(np.asarray(errors, dtype=float))
    v, e = v[np.isfinite(v)], e[np.isfinite(v)]
    if not len(v) or (v - 2 * e > 0).all():
        return None
    near = (np.abs(v) <= 2 * e) & (v != 0)
    apart = np.abs(v[v != 0])
    width = float((np.abs(v) + e)[near].max() if near.any() else apart.min() if len(apart) else 1.0)
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9))


def scale_y(axes: Any, column: Column, values: Sequence[float], errors: Sequence[float]) -> None:
    """A logarithmic axis for what is better low and spans far; with a linear part, named at the axis, around 0."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if column.better != "lower" or not len(known):
        return
    linear = linear_range(values, errors)
    if linear is None:
        if known.max() > 8 * known.min():
            axes.set_yscale("log")
    elif np.abs(known).max() > 8 * linear:
        axes.set_yscale("symlog", linthresh=linear, linscale=0.6)
        label = f"{' '.join(axes.get_ylabel().split())}, linear within ±{linear:g}"
        axes.set_ylabel(textwrap.fill(label, LABEL))
        axes.axhline(0.0, color="#b0b0b0", linewidth=0.8, zorder=1)


def ticks_y(axes: Any) -> None:
    """Numbers at the ticks of an axis that `scale_y` made logarithmic, once everything is drawn."""
    if axes.get_yscale() == "log":
        plain_ticks(axes.yaxis)
    elif axes.get_yscale() == "symlog":
        linear = axes.yaxis.get_transform().linthresh
        low, high = axes.get_ylim()
        powers = [10.0**k for k in range(math.floor(math.log10(linear)), 9) if 10.0**k > 1.5 * linear]
        ticks = [sign * size for size in (linear, *powers) for sign in (-1, 1)]
        plain_ticks(axes.yaxis, sorted([0.0, *(tick for tick in ticks if low <= tick <= high)]))
