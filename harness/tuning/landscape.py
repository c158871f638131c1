"""Slices and contours of a search: the objective along each dimension, and over pairs of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from harness.report.axes import plain_ticks
from harness.report.figures import dress
from harness.tuning.drawing import Nothing, Trials, log_if_wide, need, new_figure
from harness.tuning.importance import importances

_MOST = 12  # panels of slices; more would be too small to read
_PAIRED_DIMENSIONS = 4


def _position(data: Trials, key: str, trial: FrozenTrial) -> float:
    """Where a trial lies in one dimension: its value, or the place of a choice."""
    spread = data.space[key]
    value = trial.params[key]
    return float(_choices(spread).index(str(value)) if isinstance(spread, CategoricalDistribution) else value)


def _choices(spread: CategoricalDistribution) -> list[str]:
    return [str(c) for c in spread.choices]


def _dress_dimension(axis: Any, data: Trials, key: str, scale: Callable[[str], None]) -> None:
    spread = data.space[key]
    if isinstance(spread, CategoricalDistribution):
        axis.set_ticks(range(len(spread.choices)), [c if len(c) < 12 else c[:10] + ".." for c in _choices(spread)])
    elif getattr(spread, "log", False):
        scale("log")
        powers = [10.0**k for k in range(math.ceil(math.log10(spread.low) - 1e-9), 99) if 10.0**k <= spread.high]
        plain_ticks(axis, powers if len(powers) > 1 else None)


def draw_slices(data: Trials) -> tuple[Any, Sequence[Any]]:
    """A panel for each dimension in which trials differ, a row of panels for each objective; raises `Nothing`."""
    need(data, 2)
    keys = data.varying()[:_MOST]
    if not keys:
        raise Nothing("the finished trials differ in no dimension")
    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure, panels = new_figure(rows * len(data.names), columns, 3.0, 2.7)
    number_T = np.array([t.number for t in data.done])
    for k, (i, key) in itertools.product(range(len(data.names)), enumerate(keys)):
        axes = panels[k * rows + i // columns, i % columns]
        dress(axes, "", data.short(key), data.names[k] if i % columns == 0 else "")
        has_T = np.array([key in t.params for t in data.done])
        for mask_T, marker in ((has_T & data.feasible_T, "o"), (has_T & ~data.feasible_T, "x")):
            at = [_position(data, key, t) for t, has in zip(data.done, mask_T, strict=True) if has]
            shown = axes.scatter(
                at, data.values_TK[mask_T, k], c=number_T[mask_T], s=14, cmap="viridis",
                vmin=number_T.min(), vmax=number_T.max(), marker=marker,
            )  # fmt: skip
        _dress_dimension(axes.xaxis, data, key, axes.set_xscale)
        log_if_wide(axes, data.values_TK[:, k])
    for axes in panels.flat:
        axes.set_visible(bool(axes.collections))
    figure.colorbar(shown, ax=panels, label="trial" if data.feasible_T.all() else "trial (x: breaks a constraint)")
    return figure, []


def draw_contours(data: Trials) -> tuple[Any, Sequence[Any]]:
    """A panel for each pair of the most important dimensions, by the first objective; raises `Nothing`."""
    need(data, 3)
    share = importances(data.study, 0) if len(data.done) > 1 else {}
    keys = sorted(data.varying(), key=lambda key: -share.get(key, 0.0))[:_PAIRED_DIMENSIONS]
    if len(keys) < 2:
        raise Nothing(f"the finished trials differ in {len(keys)} dimension{'s' * (len(keys) != 1)}, and it needs two")
    pairs = list(itertools.combinations(keys, 2))
    columns = min(3, len(pairs))
    figure, panels = new_figure(math.ceil(len(pairs) / columns), columns, 3.6, 3.2)
    value_T = data.values_TK[:, 0]
    limits = {"vmin": value_T.min(), "vmax": value_T.max()}
    palette = "viridis_r" if data.lower_K[0] else "viridis"
    for axes, (one, two) in zip(panels.flat, pairs, strict=False):
        dress(axes, "", data.short(one), data.short(two))
        axes.use_sticky_edges = False  # trials at the rim would be cut in half
        both_T = np.array([one in t.params and two in t.params for t in data.done])
        inside = [t for t, both in zip(data.done, both_T, strict=True) if both]
        x, y = (np.array([_position(data, key, t) for t in inside]) for key in (one, two))
        _fill(axes, x, y, value_T[both_T], data, (one, two), limits | {"cmap": palette})
        shown = axes.scatter(x, y, c=value_T[both_T], s=16, edgecolors="white", linewidths=0.5, cmap=palette, **limits)
        _dress_dimension(axes.xaxis, data, one, axes.set_xscale)
        _dress_dimension(axes.yaxis, data, two, axes.set_yscale)
    for axes in panels.flat:
        axes.set_visible(bool(axes.collections))
    figure.colorbar(shown, ax=panels, label=data.label(0))
    return figure, []


def _fill(axes: Any, x: np.ndarray, y: np.ndarray, value: np.ndarray, data: Trials, keys: Any, look: dict) -> None:
    """Interpolated values between the trials, on the triangles that they form; nothing where they form none.

    Nor between choices, which have no values in between.
    """
    if any(isinstance(data.space[key], CategoricalDistribution) for key in keys):
        return
    spot, place = np.unique(np.stack([x, y], 1), axis=0, return_inverse=True)
    mean = np.bincount(place.ravel(), value) / np.bincount(place.ravel())
    logs = [getattr(data.space[key], "log", False) for key in keys]
    flat = np.stack([np.log(spot[:, i]) if logs[i] else spot[:, i] for i in range(2)], 1)
    span = np.ptp(flat, axis=0)
    if len(spot) < 4 or (span == 0).any() or np.ptp(mean) == 0:
        return
    from matplotlib.tri import Triangulation

    flat = (flat - flat.min(0)) / span
    if np.linalg.matrix_rank(flat - flat.mean(0), tol=1e-6) < 2:
        return  # all on one line
    triangles = Triangulation(flat[:, 0], flat[:, 1]).triangles
    axes.tricontourf(spot[:, 0], spot[:, 1], triangles, mean, levels=12, alpha=0.75, **look)
