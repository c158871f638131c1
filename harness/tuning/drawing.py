"""What the figures of a tuning share: the finished trials as arrays, and new axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.tuning.best import signs
from harness.tuning.claims import all_trials, status
from harness.tuning.display import feasible

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune

BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#9a9a9a", "#000000"  # Okabe and Ito (2008)
_DPI = 150


class Nothing(Exception):
    """A figure that has nothing to show, and why."""


@dataclass(frozen=True)
class Trials:
    """What the figures draw: the finished trials, their values (T, K), and what the columns are called."""

    done: list[FrozenTrial]
    values_TK: np.ndarray
    names: list[str]
    lower_K: np.ndarray  # whether lower is better
    feasible_T: np.ndarray
    others: list[tuple[int, str]]  # number and state of trials without a value
    space: dict[str, BaseDistribution]
    study: optuna.Study

    def short(self, key: str) -> str:
        """The last part of a dimension's name, where no other one ends in the same."""
        tail = key.rsplit(".", 1)[-1]
        return tail if sum(k.rsplit(".", 1)[-1] == tail for k in self.space) == 1 else key

    def varying(self) -> list[str]:
        """Dimensions in which the finished trials differ."""
        return [k for k in self.space if len({str(t.params[k]) for t in self.done if k in t.params}) > 1]

    def label(self, k: int) -> str:
        return f"{self.names[k]} ({'lower' if self.lower_K[k] else 'higher'} is better)"


def read_trials(loaded: LoadedTune, study: optuna.Study) -> Trials:
    """Collect what is drawn; dimensions in the order of the space."""
    trials = all_trials(study)
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    space: dict[str, BaseDistribution] = {}
    for key in loaded.cfg.space:
        spread = next((t.distributions[key] for t in done if key in t.distributions), None)
        space |= {} if spread is None else {key: spread}
    names = list(loaded.cfg.objectives)
    return Trials(
        done,
        np.array([t.values for t in done], dtype=float).reshape(len(done), len(names)),
        names,
        signs(study) > 0,
        np.array([feasible(t) for t in done], dtype=bool),
        [(t.number, status(t)) for t in trials if status(t) in ("pruned", "failed")],
        space,
        study,
    )


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, np.ndarray]:
    """A figure of its own canvas and its axes, (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def log_if_wide(axes: Any, values: np.ndarray) -> None:
    """A logarithmic value axis where positive values span more than a factor of 30."""
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def need(data: Trials, count: int = 1) -> None:
    """Raise `Nothing` where fewer than `count` trials are finished."""
    if len(data.done) < count:
        raise Nothing(f"it needs {count} finished trial{'s' if count > 1 else ''}, and there are {len(data.done)}")
