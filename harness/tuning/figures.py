"""Figures of a tuning as PNG: history, importances, slices, contours and the Pareto front.

Each is left out, with a line that says why, where there is nothing that it could show.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from harness.report.figures import dress, save
from harness.tuning.best import order
from harness.tuning.display import front
from harness.tuning.drawing import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    Nothing,
    Trials,
    log_if_wide,
    need,
    new_figure,
    read_trials,
)
from harness.tuning.importance import importances
from harness.tuning.landscape import draw_contours, draw_slices

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune


def draw_all(loaded: LoadedTune, study: optuna.Study) -> tuple[list[Path], list[str]]:
    """Draw what can be drawn into `figures/` of the tune folder; the files, and a line for each that is left out."""
    data = read_trials(loaded, study)
    folder = loaded.folder / "figures"
    drawings: dict[str, Callable[[Trials], tuple[Any, Sequence[Any]]]] = {
        "history": _history,
        "importances": _importances,
        "slice": draw_slices,
        "contour": draw_contours,
        "pareto": _pareto,
    }
    if len(data.names) == 1:
        del drawings["pareto"]
    made, missing = [], []
    for name, draw in drawings.items():
        path = folder / f"{name}.png"
        try:
            figure, panels = draw(data)
            made.append(save(figure, panels, path))
        except Nothing as reason:
            path.unlink(missing_ok=True)  # of a time when there was something
            missing.append(f"figure {name} is left out: {reason}")
    return made, missing


# ---- history ----------------------------------------------------------------------------------------------------------
def _history(data: Trials) -> tuple[Any, Sequence[Any]]:
    need(data)
    figure, panels = new_figure(len(data.names), 1, 7.2, 4.2)
    number_T = np.array([t.number for t in data.done])
    for k, axes in enumerate(panels[:, 0]):
        dress(axes, "Trials in the order in which they began" if k == 0 else "", "trial", data.label(k))
        ok_T, value_T = data.feasible_T, data.values_TK[:, k]
        axes.plot(number_T[ok_T], value_T[ok_T], "o", color=BLUE, markersize=4, label="finished")
        if not ok_T.all():
            axes.plot(number_T[~ok_T], value_T[~ok_T], "o", color=GREY, mfc="none", ms=4, label="breaks a constraint")
        if ok_T.any():
            best = (np.minimum if data.lower_K[k] else np.maximum).accumulate(value_T[ok_T])
            ends = np.append(number_T[ok_T], max(number_T.max(), number_T[ok_T][-1]))
            axes.step(ends, np.append(best, best[-1]), where="post", color=ORANGE, label="best so far")
        for state, mark in (("pruned", "|"), ("failed", "x")):
            at = [n for n, s in data.others if s == state]
            if at:
                foot = axes.get_xaxis_transform()  # along the lower edge: they have no value
                axes.plot(at, [0.02] * len(at), mark, color=BLACK, ms=6, transform=foot, label=state, ls="none")
        log_if_wide(axes, value_T)
    return figure, list(panels[:, 0])


# ---- importances ------------------------------------------------------------------------------------------------------
def _importances(data: Trials) -> tuple[Any, Sequence[Any]]:
    need(data, 2)
    if len(data.varying()) < 2:
        raise Nothing(f"the finished trials differ in fewer than two dimensions ({len(data.varying())})")
    shares = [importances(data.study, k) for k in range(len(data.names))]
    known = [(k, s) for k, s in enumerate(shares) if s]
    if not known:
        raise Nothing("the best trials are spread over every dimension as all trials are")
    keys = sorted(data.varying(), key=lambda key: max(s.get(key, 0.0) for _, s in known))
    figure, panels = new_figure(1, 1, 7.2, 1.4 + 0.42 * len(keys))
    axes = panels[0, 0]
    dress(axes, "Importance of each dimension (PED-ANOVA)", "share", "")
    thick = 0.8 / len(known)
    for place, (k, share) in enumerate(known):
        at = np.arange(len(keys)) + (place - (len(known) - 1) / 2) * thick
        colour = (BLUE, ORANGE, "#009E73", "#CC79A7")[k % 4]
        label = data.names[k] if len(data.names) > 1 else None
        axes.barh(at, [share.get(key, 0.0) for key in keys], thick * 0.9, color=colour, label=label)
    axes.set_yticks(range(len(keys)), [data.short(key) for key in keys])
    axes.grid(False, axis="y")
    return figure, [axes]


# ---- several objectives -----------------------------------------------------------------------------------------------
def _pareto(data: Trials) -> tuple[Any, Sequence[Any]]:
    need(data)
    pairs = list(itertools.combinations(range(len(data.names)), 2))
    figure, panels = new_figure(1, len(pairs), 6.2, 4.8)
    on_front = {t.number for t in front(data.done, data.study.directions)}
    front_T = np.array([t.number in on_front for t in data.done])
    for axes, (a, b) in zip(panels.flat, pairs, strict=True):
        dress(axes, "", data.label(a), data.label(b))
        for mask_T, look in (
            (data.feasible_T & ~front_T, {"color": BLUE, "label": "finished"}),
            (~data.feasible_T, {"color": GREY, "mfc": "none", "label": "breaks a constraint"}),
            (front_T, {"color": ORANGE, "label": "on the front"}),
        ):
            if mask_T.any():
                axes.plot(data.values_TK[mask_T, a], data.values_TK[mask_T, b], "o", ms=5, **look)
        if front_T.any():
            cost_TK = data.values_TK[front_T] * np.where(data.lower_K, 1.0, -1.0)
            knee = data.values_TK[front_T][order(cost_TK)[0]]
            axes.plot(knee[a], knee[b], "*", color=BLACK, ms=13, label="knee", zorder=5)
    return figure, list(panels.flat)
