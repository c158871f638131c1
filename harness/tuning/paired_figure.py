"""The re-evaluation as a figure: each configuration's value for each fresh seed, seeds joined by lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from harness.report.figures import dress, save
from harness.tuning.best import signs
from harness.tuning.confirm import DEFAULT, Confirmation
from harness.tuning.drawing import BLUE, ORANGE, log_if_wide, new_figure

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune

_GREY = "#b8b8b8"


def draw_confirmation(loaded: LoadedTune, study: optuna.Study, done: Confirmation) -> Path | None:
    """Write `figures/confirm.png`, a panel for each objective; None where fewer than two configurations have a run."""
    path = loaded.folder / "figures" / "confirm.png"
    labels = list(dict.fromkeys(r.label for r in done.runs))
    if len(labels) < 2:
        path.unlink(missing_ok=True)
        return None
    names = list(loaded.cfg.objectives)
    figure, panels = new_figure(1, len(names), 1.6 + 1.2 * len(labels), 4.2)
    for k, axes in enumerate(panels[0]):
        better = "lower" if signs(study)[k] > 0 else "higher"
        title = f"The default and the best, with {len(done.seeds)} fresh seeds" if k == 0 else ""
        dress(axes, title, "", f"{names[k]} ({better} is better)")
        for n, seed in enumerate(done.seeds):
            line = {label: r.values[k] for label in labels for r in done.of(label) if r.seed == seed}
            at = [labels.index(label) for label in line]
            name = "one seed" if n == 0 else None
            axes.plot(at, list(line.values()), "o-", color=_GREY, ms=4, lw=0.8, label=name, zorder=2)
        for i, label in enumerate(labels):
            mean = float(np.mean([r.values[k] for r in done.of(label)]))
            colour = BLUE if label == DEFAULT else ORANGE
            axes.plot([i - 0.25, i + 0.25], [mean, mean], "-", color=colour, lw=2.5, zorder=3)
        axes.plot([], [], "-", color="#404040", lw=2.5, label="mean")
        axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 3 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        log_if_wide(axes, np.array([r.values[k] for r in done.runs]))
    return save(figure, list(panels[0]), path)
