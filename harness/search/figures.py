"""Figures of a search as PNG: Optuna's own of its trials, and the re-evaluation with fresh seeds.

A figure is left out, with a line that says why, where there is nothing that it could show.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
#: Share of the trials that counts as the best for importances, and how many there should be of them.
QUANTILE, AT_LEAST = 0.1, 5


class Nothing(Exception):
    """A figure that has nothing to show, and why."""


def draw_all(loaded: LoadedTune, study: optuna.Study) -> tuple[list[Path], list[str]]:
    """Draw what can be drawn into `figures/` of the tune folder; the files, and a line for each that is left out.

    With several objectives each has its own history, slices and contours, called `<figure>-<objective>.png`.
    """
    names, made, missing = list(loaded.cfg.objectives), [], []
    drawings: dict[str, Callable[[], Any]] = {}
    for k, name in enumerate(names):
        view = _View(study, list(loaded.cfg.space), k, name)
        end = f"-{name}" if len(names) > 1 else ""
        drawings |= {f"history{end}": view.history, f"importances{end}": view.importances, f"slice{end}": view.slices}
        drawings |= {f"contour{end}": view.contours}
    if len(names) > 1:
        drawings["pareto"] = lambda: _pareto(study, names)
    for stem, draw in drawings.items():
        path = loaded.folder / "figures" / f"{stem}.png"
        try:
            with _optunas_style():
                figure = draw()
                _shorten(figure, list(loaded.cfg.space))
                made.append(save(figure, [], path))
        except Nothing as reason:
            path.unlink(missing_ok=True)  # of a time when there was something
            missing.append(f"figure {stem} is left out: {reason}")
    return made, missing


@contextmanager
def _optunas_style() -> Iterator[None]:
    """Optuna draws with pyplot and sets a style of its own for all figures; outside of the block nothing of it is left."""
    plt.switch_backend("Agg")
    settings: dict[Any, Any] = {
        "figure.dpi": DPI,
        "font.size": 10,
        "axes.labelsize": 11,
        "figure.constrained_layout.use": True,
    }
    with plt.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna's experimental functions
        try:
            yield
        finally:
            plt.close("all")


class _View:
    """The figures of one objective."""

    def __init__(self, study: optuna.Study, space: list[str], k: int, name: str) -> None:
        self.study, self.k = study, k
        self.done = [t for t in all_trials(study) if t.state == TrialState.COMPLETE]
        self.varying = [key for key in space if len({str(t.params[key]) for t in self.done if key in t.params}) > 1]
        self.name = f"{name} ({'lower' if signs(study.directions)[k] > 0 else 'higher'} is better)"
        # Without a target Optuna knows the direction, but it takes none for several objectives.
        one = len(study.directions) == 1
        self.target: dict[str, Any] = {"target": None if one else self._value, "target_name": self.name}

    def _value(self, trial: FrozenTrial) -> float:
        return trial.values[self.k]

    def _need(self, trials: int, dimensions: int = 0) -> None:
        """Raise `Nothing` where fewer trials are finished, or they differ in fewer dimensions."""
        if len(self.done) < trials:
            many = f"{trials} finished trial{'s' if trials > 1 else ''}"
            raise Nothing(f"it needs {many}, and there are {len(self.done)}")
        if len(self.varying) < dimensions:
            many = f"{dimensions} dimension{'s' if dimensions > 1 else ''}"
            raise Nothing(f"it needs {many} in which finished trials differ, and there are {len(self.varying)}")

    def history(self) -> Figure:
        """Values in the order of the trials, and the best so far."""
        self._need(1)
        axes: Any = views.plot_optimization_history(self.study, **self.target)
        axes.figure.set_size_inches(8.4, 4.2)
        return axes.figure

    def shares(self) -> dict[str, float]:
        """How much each dimension matters, the largest first: PED-ANOVA, which knows dimensions that are not always there.

        Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces"
        (IJCAI 2023): how far the best trials are from being spread as all trials are, in each dimension by itself.
        """
        values = [self._value(t) for t in self.done]
        if len(self.varying) < 2 or min(values) == max(values):
            return {}
        found = optuna.importance.get_param_importances(
            self.study, evaluator=self._evaluator(), params=self.varying, target=self._cost
        )
        return found if any(found.values()) else {}

    def _cost(self, trial: FrozenTrial) -> float:
        """Lower is better, as the evaluator takes it."""
        return float(signs(self.study.directions)[self.k]) * trial.values[self.k]

    def _evaluator(self) -> optuna.importance.PedAnovaImportanceEvaluator:
        share = min(0.5, max(QUANTILE, AT_LEAST / max(1, len(self.done))))
        return optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)

    def importances(self) -> Figure:
        """A bar for each dimension."""
        self._need(2, 2)
        if not self.shares():
            raise Nothing("the best trials are spread over every dimension as all trials are")
        axes: Any = views.plot_param_importances(
            self.study, self._evaluator(), self.varying, target=self._cost, target_name=self.name
        )
        axes.set_title("Importance of each dimension (PED-ANOVA)", loc="left")
        axes.set(xlabel="share", ylabel="")
        axes.figure.set_size_inches(7.2, 1.6 + 0.42 * len(self.varying))
        return axes.figure

    def slices(self) -> Figure:
        """The objective along each dimension in which trials differ."""
        self._need(2, 1)
        axes: Any = views.plot_slice(self.study, self.varying[:_MOST], **self.target)
        return np.atleast_1d(axes)[0].figure

    def contours(self) -> Figure:
        """The objective over pairs of the most important dimensions."""
        self._need(3, 2)
        share = self.shares()
        keys = sorted(self.varying, key=lambda key: -share.get(key, 0.0))[:_PAIRED]
        axes: Any = views.plot_contour(self.study, keys, **self.target)
        figure = np.atleast_2d(axes)[0, 0].figure
        figure.set_size_inches(2.4 + 2.6 * len(keys), 1.6 + 2.4 * len(keys))
        return figure


def _pareto(study: optuna.Study, names: list[str]) -> Figure:
    """The front of two or three objectives."""
    if len(names) > 3:
        raise Nothing(f"it has two or three axes, and there are {len(names)} objectives")
    if not any(feasible(t) for t in all_trials(study)):
        raise Nothing("it needs 1 finished trial that meets the constraints, and there are 0")
    axes: Any = views.plot_pareto_front(study, target_names=names)
    axes.figure.set_size_inches(7.2, 4.8)
    return axes.figure


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
    labels = list(dict.fromkeys(r.label for r in done.runs))
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
            line = {label: r.values[k] for label in labels for r in done.of(label) if r.seed == seed}
            at = [labels.index(label) for label in line]
            name = "one seed" if n == 0 else None
            axes.plot(at, list(line.values()), "o-", color=_GREY, ms=4, lw=0.8, label=name, zorder=2)
        for i, label in enumerate(labels):
            mean = float(np.mean([r.values[k] for r in done.of(label)]))
            colour = _BLUE if label == DEFAULT else _ORANGE
            axes.plot([i - 0.25, i + 0.25], [mean, mean], "-", color=colour, lw=2.5, zorder=3)
        axes.plot([], [], "-", color="#404040", lw=2.5, label="mean")
        axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 3 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        values = [r.values[k] for r in done.runs]
        if min(values) > 0 and max(values) / min(values) > 30:
            axes.set_yscale("log")
    return save(figure, panels, path)
