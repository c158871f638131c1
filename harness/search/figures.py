"""Figures of a search as PNG: Optuna's own of its trials, and the re-evaluation with fresh seeds.

A figure is left out, with a line that says why, where there is nothing that it could show.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import optuna.visualization.matplotlib as views
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from harness.report.canvas import DPI, new_figure
from harness.report.figures import dress, save
from harness.search.confirm import DEFAULT, Confirmation
from harness.search.loaded import LoadedTune
from harness.search.trials import all_trials, feasible, signs

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#b8b8b8"  # Okabe and Ito (2008)
_MOST, _PAIRED = 12, 4  # dimensions of slices and of contours; more would be too small to read
#: How many finished trials a figure of one objective needs, and in how many dimensions they must differ; inches.
_NEEDS = {"history": (1, 0), "importances": (2, 2), "slice": (2, 1), "contour": (3, 2)}
_SIZES = {"history": (8.4, 4.2), "importances": (7.2, 4.2), "contour": (12.8, 11.2), "pareto": (7.2, 4.8)}
_STYLE: dict[Any, Any] = {
    "figure.dpi": DPI,
    "font.size": 10,
    "axes.labelsize": 11,
    "figure.constrained_layout.use": True,
}


def draw_all(loaded: LoadedTune, study: optuna.Study) -> tuple[list[Path], list[str]]:
    """Draw what can be drawn into `figures/` of the tune folder; the files, and a line for each that is left out.

    With several objectives each has figures of its own, called `<figure>-<objective>.png`.
    """
    names, space = list(loaded.cfg.objectives), list(loaded.cfg.space)
    figures = {
        kind if len(names) == 1 else f"{kind}-{name}": (kind, k) for k, name in enumerate(names) for kind in _NEEDS
    }
    if 1 < len(names) < 4:
        figures["pareto"] = ("pareto", 0)
    done = [t for t in all_trials(study) if t.state == TrialState.COMPLETE]
    varying = [key for key in space if len({str(t.params[key]) for t in done if key in t.params}) > 1]
    made, missing = [], []
    plt.switch_backend("Agg")
    for stem, (kind, k) in figures.items():
        path = loaded.folder / "figures" / f"{stem}.png"
        if why := _nothing(kind, k, done, varying):
            path.unlink(missing_ok=True)  # of a time when there was something
            missing.append(f"figure {stem} is left out: {why}")
            continue
        # Optuna draws with pyplot and sets a style of its own for all figures; outside of the block nothing of it is left.
        with plt.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna's experimental functions
            figure = _drawn(kind, study, k, names, varying)
            if kind in _SIZES:
                figure.set_size_inches(_SIZES[kind])
            _shorten(figure, space)
            made.append(save(figure, [], path))
        plt.close("all")
    return made, missing


def _nothing(kind: str, k: int, done: list[FrozenTrial], varying: list[str]) -> str:
    """Why there is nothing to draw; empty where there is."""
    trials, dimensions = _NEEDS.get(kind, (1, 0))
    if len(done) < trials or len(varying) < dimensions:
        differ = f"dimensions in which they differ: {dimensions} needed, {len(varying)} there"
        return f"finished trials: {trials} needed, {len(done)} there; {differ}"
    if kind == "importances" and len({t.values[k] for t in done}) == 1:
        return "all finished trials have the same value"
    return "no trial meets the constraints" if kind == "pareto" and not any(map(feasible, done)) else ""


def _drawn(kind: str, study: optuna.Study, k: int, names: list[str], varying: list[str]) -> Figure:
    """One of Optuna's figures of the objective `k`."""
    sign = float(signs(study.directions)[k])
    shown = f"{names[k]} ({'lower' if sign > 0 else 'higher'} is better)"
    # Without a target Optuna knows the direction, but it takes none for several objectives.
    target: Callable[[FrozenTrial], float] | None = None if len(names) == 1 else lambda trial: trial.values[k]
    if kind == "pareto":
        axes: Any = views.plot_pareto_front(study, target_names=names)
    elif kind == "history":
        axes = views.plot_optimization_history(study, target=target, target_name=shown)
    elif kind == "slice":
        axes = views.plot_slice(study, varying[:_MOST], target=target, target_name=shown)
    elif kind == "contour":
        most = list(importances(study, k, varying))[:_PAIRED]
        axes = views.plot_contour(study, most, target=target, target_name=shown)
    else:
        axes = views.plot_param_importances(
            study, _evaluator(study), varying, target=_cost(study, k), target_name=shown
        )
        axes.set(title="Importance of each dimension (PED-ANOVA)", xlabel="share", ylabel="")
    return np.ravel(axes)[0].figure


def importances(study: optuna.Study, k: int, varying: list[str]) -> dict[str, float]:
    """How much each dimension matters for the objective `k`, the largest first; shares of 1.

    PED-ANOVA, which knows dimensions that are not always there: Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently
    Quantifying Hyperparameter Importance in Arbitrary Subspaces" (IJCAI 2023): how far the best trials (a tenth, or five) are
    from being spread as all trials are, in each dimension by itself.
    """
    return optuna.importance.get_param_importances(
        study, evaluator=_evaluator(study), params=varying, target=_cost(study, k)
    )


def _evaluator(study: optuna.Study) -> optuna.importance.PedAnovaImportanceEvaluator:
    done = sum(t.state == TrialState.COMPLETE for t in all_trials(study))
    return optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / done)))


def _cost(study: optuna.Study, k: int) -> Callable[[FrozenTrial], float]:
    """Lower is better, as the evaluator takes it."""
    sign = float(signs(study.directions)[k])
    return lambda trial: sign * trial.values[k]


def _shorten(figure: Figure, space: list[str]) -> None:
    """Call each dimension by the last part of its name, where no other one ends in the same."""
    tails = [key.rsplit(".", 1)[-1] for key in space]
    short = {key: tail for key, tail in zip(space, tails, strict=True) if tails.count(tail) == 1}
    for axes in figure.axes:
        if axes.get_subplotspec() is not None:  # not a bar of colours
            axes.label_outer()
        axes.set_xlabel(short.get(axes.get_xlabel(), axes.get_xlabel()))
        axes.set_ylabel(short.get(axes.get_ylabel(), axes.get_ylabel()))
        words = [label.get_text() for label in axes.get_yticklabels()]
        if short.keys() & set(words):
            axes.set_yticks(axes.get_yticks(), [short.get(word, word) for word in words])


# ---- the re-evaluation ------------------------------------------------------------------------------------------------
def draw_confirmation(loaded: LoadedTune, study: optuna.Study, done: Confirmation) -> Path | None:
    """Write `figures/confirm.png`: each configuration's value for each fresh seed, seeds joined by lines.

    A panel for each objective; None where fewer than two configurations have a run.
    """
    path = loaded.folder / "figures" / "confirm.png"
    labels = list(dict.fromkeys(run["label"] for run in done.runs))
    if len(labels) < 2:
        path.unlink(missing_ok=True)
        return None
    names = list(loaded.cfg.objectives)
    figure = new_figure(((1.6 + 1.2 * len(labels)) * len(names), 4.2))
    panels = list(figure.subplots(1, len(names), squeeze=False)[0])
    for k, axes in enumerate(panels):
        better = "lower" if signs(study.directions)[k] > 0 else "higher"
        title = f"The default and the best, with {len(done.seeds)} fresh seeds" if k == 0 else ""
        dress(axes, title, "", f"{names[k]} ({better} is better)")
        for n, seed in enumerate(done.seeds):
            line = {labels.index(run["label"]): run[f"value.{names[k]}"] for run in done.runs if run["seed"] == seed}
            name = "one seed" if n == 0 else None
            axes.plot(line.keys(), line.values(), "o-", color=_GREY, ms=4, lw=0.8, label=name, zorder=2)
        for i, label in enumerate(labels):
            mean = float(np.mean([run[f"value.{names[k]}"] for run in done.of(label)]))
            colour = _BLUE if label == DEFAULT else _ORANGE
            axes.plot([i - 0.25, i + 0.25], [mean, mean], "-", color=colour, lw=2.5, zorder=3)
        axes.plot([], [], "-", color="#404040", lw=2.5, label="mean")
        axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 3 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    return save(figure, panels, path)
