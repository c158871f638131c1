"""Figures of a report as PNG: scores against budgets, quality against diversity, training curves.

Every function draws what `harness.report.aggregate` describes; a label (of a method and its sampler) has one colour and
marker in all figures.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import CURVES, aggregate, data_value, headline
from harness.report.axes import LABEL, plain_ticks, scale_y, ticks_y
from harness.report.canvas import new_figure, write_figure
from harness.report.style import Style

_GREY = "#6e6e6e"
_SIZE = (7.2, 4.6)
#: Lines of a legend that the panels have room for, and inches of each further one.
_LINES, _LINE = 2, 0.23
BETTER = {"lower": "lower is better", "higher": "higher is better", "data": "the data's value is the aim"}
BUDGETS = {
    "nfe": "NFE (network calls per sequence)",
    "equivalent_nfe": "Equivalent NFE (FLOPs over those of one baseline call)",
    "seconds_per_seq": "Wall-clock seconds per sequence",
}


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    figure = new_figure(_SIZE)
    axes = figure.add_subplot()
    dress(axes, title, x, y)
    return figure, axes


def dress(axes: Any, title: str, x: str, y: str) -> None:
    """Title, axis labels and grid, as in all figures; what is long is broken into lines, not cut."""
    axes.set_title(textwrap.fill(title, 68), fontsize=12, loc="left")
    axes.set_xlabel(textwrap.fill(x, 60), fontsize=11)
    axes.set_ylabel(textwrap.fill(y, LABEL), fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Any, panels: Sequence[Any], path: Path, width: int = 84) -> Path:
    """Write the figure with one legend for its panels, about `width` characters wide; a long one makes the figure longer."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = max(1, min(len(handles), width // (max(map(len, handles)) + 6)))
        more = max(0, math.ceil(len(handles) / columns) - _LINES) * _LINE
        figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + more)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=10
        )
    return write_figure(figure, path)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near `values`, in the same order, at least `gap` apart, for labels that must not cover each other."""
    order = np.argsort(values, kind="stable")
    placed = np.array(values, dtype=float)[order]
    for _ in range(100):
        close = np.flatnonzero(np.diff(placed) < gap - 1e-9)
        if not len(close):
            break
        for i in close:
            shift = (gap - (placed[i + 1] - placed[i])) / 2
            placed[i] -= shift
            placed[i + 1] += shift
    made = np.empty_like(placed)
    made[order] = placed
    return made.tolist()


def draw_curves(axes: Any, table: pd.DataFrame, column: Column, budget: str, style: Style) -> None:
    """Methods, floors and probes in their style with bands of one standard error, on a logarithmic x axis.

    Infinite values cannot be placed on it: a line in the corner says where they are.
    """
    curves = table[table["role"].isin(CURVES)]
    shown = curves[np.isfinite(curves[column.name]) & (curves[budget] > 0)]
    scale_y(axes, column, table[column.name].tolist(), table[f"{column.name}_error"].tolist())
    for (role, label), group in shown.groupby(["role", "label"], sort=False):
        rows = group.sort_values(budget)
        x, y, error = (rows[name].to_numpy(dtype=float) for name in (budget, column.name, f"{column.name}_error"))
        compared = role == "method"
        look = style.of(str(label)) | {"linewidth": 2, "markersize": 6} if compared else style.beside(str(label))
        axes.plot(x, y, label=label, zorder=3 if compared else 4, **look)
        # A lone point has no band to show its error with.
        if len(rows) == 1:
            axes.errorbar(x, y, np.nan_to_num(error), color=look["color"], capsize=3, zorder=3)
        low = np.maximum(y - error, y * 1e-3) if axes.get_yscale() == "log" else y - error
        axes.fill_between(x, low, y + error, color=look["color"], alpha=0.18, linewidth=0, zorder=2)
    axes.fill_between([], [], [], color=_GREY, alpha=0.18, linewidth=0, label="band: ± one standard error")
    axes.set_xscale("log", **({"base": 2} if budget == "nfe" else {}))
    plain_ticks(axes.xaxis, sorted(set(shown["nfe"])) if budget == "nfe" else None)
    infinite = curves[np.isinf(curves[column.name])]
    lines = [
        f"{label}: infinite at NFE {', '.join(f'{nfe:.0f}' for nfe in sorted(rows['nfe'].dropna()))}"
        for label, rows in infinite.groupby("label", sort=False)
    ]
    if lines:
        axes.text(0.99, 0.99, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", fontsize=8,
                  color="#333333", zorder=6, bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0})  # fmt: skip


def of_scale(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of an aggregated table that are drawn as horizontal lines: data and references with a value."""
    return table[table["role"].isin(("data", "reference")) & np.isfinite(table[name])].drop_duplicates("label")


def reference_lines(axes: Any, table: pd.DataFrame, name: str) -> None:
    """A dashed line for each reference, named at the right end; the data's own is solid."""
    rows = of_scale(table, name)
    if rows.empty:
        return
    for _, row in rows.iterrows():
        of_data = row["role"] == "data"
        axes.axhline(row[name], color="#222222" if of_data else _GREY, linewidth=1.3, zorder=1,
                     linestyle="-" if of_data else (0, (4, 3)))  # fmt: skip
    for label, height in zip(rows["label"], _label_heights(axes, rows[name].tolist()), strict=True):
        axes.text(1.01, height, label, transform=axes.transAxes, va="center", fontsize=9, color="#333333")


def _label_heights(axes: Any, values: Sequence[float]) -> list[float]:
    """Heights, as shares of the axis, beside `values`, for labels that do not cover each other."""
    forward = axes.yaxis.get_transform().transform
    low, high, *places = forward(np.array([*axes.get_ylim(), *values], dtype=float))
    return _spread([float((place - low) / (high - low)) for place in places], 0.055)


def scores(frame: pd.DataFrame, column: Column, budget: str, path: Path) -> Path | None:
    """One score against `budget` (a key of `BUDGETS`), bands of one standard error; None where nothing is known.

    `frame` is labelled (`harness.report.aggregate.labelled`); references are lines, as their cost is often far off.
    """
    table = aggregate(headline(frame), [column.name, *(name for name in BUDGETS if name != "nfe")])
    methods = table[(table["role"] == "method") & np.isfinite(table[column.name]) & (table[budget] > 0)]
    if methods.empty:
        return None
    figure, axes = _axes(f"{column.title} ({BETTER[column.better]})", BUDGETS[budget], column.heading)
    draw_curves(axes, table, column, budget, Style.of_table(table))
    references = of_scale(table, column.name)[column.name]
    if len(references):
        axes.update_datalim([(methods[budget].iloc[0], value) for value in references])
        axes.autoscale_view(scalex=False)
    ticks_y(axes)
    reference_lines(axes, table, column.name)
    return save(figure, [axes], path)


def plane(frame: pd.DataFrame, sides: tuple[Column, Column], path: Path) -> Path | None:
    """Quality against diversity: one line per label and NFE through its temperatures, or else through its NFEs.

    The data's point is a star and references are grey diamonds. Better is down, and near the data's diversity. None where
    no method has both scores.
    """
    quality, diversity = (column.name for column in sides)
    table = aggregate(frame, [quality, diversity])
    style = Style.of_table(table)
    table = table[table[quality].gt(0) & np.isfinite(table[quality]) & np.isfinite(table[diversity])]
    methods = table[table["role"] == "method"]
    if methods.empty:
        return None
    figure, axes = _axes(f"{sides[0].title} against {sides[1].title}", sides[1].heading, sides[0].heading)
    axes.set_yscale("log")
    for label, group in methods.groupby("label", sort=False):
        look = style.of(str(label))
        swept = group.groupby("nfe")["temperature"].nunique().max() > 1
        lines = [part for _, part in group.groupby("nfe")] if swept else [group]
        for place, part in enumerate(lines):
            rows = part.sort_values("temperature" if swept else "nfe")
            strength = 0.35 + 0.65 * (place + 1) / len(lines)
            axes.plot(rows[diversity], rows[quality], label=label if place == len(lines) - 1 else None,
                      linewidth=1.8, markersize=5, alpha=strength, zorder=3, **look)  # fmt: skip
    _name_budgets(axes, methods, quality, diversity)
    for label, rows in table[table["role"].isin(("floor", "probe"))].groupby("label", sort=False):
        axes.plot(rows[diversity], rows[quality], label=label, zorder=4, **style.beside(str(label)))
    of_reference = table[table["role"].isin(("data", "reference"))].drop_duplicates("label")
    for _, row in of_reference.iterrows():
        of_data = row["role"] == "data"
        axes.plot([row[diversity]], [row[quality]], marker="*" if of_data else "d", markersize=15 if of_data else 8,
                  color="#222222" if of_data else _GREY, linestyle="none", zorder=4)  # fmt: skip
    if not math.isnan(data_value(table, diversity)):
        axes.axvline(data_value(table, diversity), color="#222222", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
    axes.margins(x=0.1, y=0.1)
    plain_ticks(axes.yaxis)
    heights = _label_heights(axes, of_reference[quality].tolist())
    for (_, row), height in zip(of_reference.iterrows(), heights, strict=True):
        _note(axes, row["label"], (row[diversity], height), (9, -4), 6, axes.get_xaxis_transform())
    return save(figure, [axes], path)


def _name_budgets(axes: Any, methods: pd.DataFrame, quality: str, diversity: str) -> None:
    """Write each NFE beside its point; of a sweep of temperatures, beside the warmest one."""
    warmest = methods.sort_values("temperature").groupby(["label", "nfe"], sort=False).tail(1)
    for _, row in warmest.iterrows():
        _note(axes, f"{row['nfe']:.0f}", (row[diversity], row[quality]), (4, 4), 5)
    axes.plot([], [], linestyle="none", marker="$4$", color="#333333", markersize=5, label="number: NFE")


def _note(
    axes: Any, text: str, place: tuple[float, float], offset: tuple[int, int], zorder: int, to: Any = "data"
) -> None:
    """Text beside a point of the coordinates `to`, readable over lines; `offset` is in points of type."""
    from matplotlib.patheffects import withStroke  # late, as in `canvas`

    halo = [withStroke(linewidth=2.5, foreground="white")]
    axes.annotate(text, place, xycoords=to, xytext=offset, textcoords="offset points", fontsize=9, color="#333333",
                  path_effects=halo, zorder=zorder)  # fmt: skip


def curves(
    series: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    path: Path,
    title: str,
    unit: str,
    labels: Sequence[str] = (),
) -> Path | None:
    """Training curves: for each label the runs of its seeds, each a list of (step, value), thin; their mean, thick.

    The mean is over the seeds at the steps that all of them have. `labels` are those of the methods in the other figures,
    whose colours they keep. None where there are no points.
    """
    known = {label: [list(run) for run in runs if len(run)] for label, runs in series.items()}
    known = {label: runs for label, runs in known.items() if runs}
    if not known:
        return None
    figure, axes = _axes(title, "Optimiser step", unit)
    style = Style([*labels, *known])
    for label, runs in known.items():
        look = style.of(label) | {"marker": None}
        maps = [dict(run) for run in runs]
        if len(maps) > 1:
            for run in maps:
                axes.plot(sorted(run), [run[step] for step in sorted(run)], linewidth=0.8, alpha=0.35, **look)
        steps = sorted(set.intersection(*(set(run) for run in maps)))
        means = [float(np.mean([run[step] for run in maps])) for step in steps]
        axes.plot(steps, means, label=label, linewidth=1.8, **look)
    return save(figure, [axes], path)
