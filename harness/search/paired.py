"""Is a configuration better than the default? Differences paired by training seed, their t-interval, and a verdict.

The best of many trials is partly the luckiest one: its own value is too good on average. So the question is put to runs
with seeds that the search did not use, and, since several configurations are asked about, with intervals that hold for all
of them together (Bonferroni's bound: each at confidence 1 - 0.05 / comparisons).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

#: Chance that any of the intervals misses its true difference.
ALPHA = 0.05
BEATS, NONE, WORSE, UNKNOWN = "beats the default", "no difference shown", "worse than the default", "cannot be told"


@dataclass(frozen=True)
class Paired:
    """A configuration against the default in one objective; differences are its value minus the default's."""

    objective: str
    seeds: int  # that both finished
    mean: float
    default: float
    difference: float
    se: float  # standard error of the mean difference
    low: float
    high: float
    level: float  # confidence of this interval
    verdict: str


def t_interval(values_S: np.ndarray, level: float) -> tuple[float, float, float]:
    """(standard error, low, high) of the mean of S numbers by Student's t with S - 1 degrees of freedom.

    With fewer than two numbers nothing is known of their spread: the error is NaN and the interval is the whole line.
    """
    if len(values_S) < 2:
        return math.nan, -math.inf, math.inf
    from scipy.stats import sem, t

    mean, se = float(values_S.mean()), float(sem(values_S))
    half = float(t.ppf(0.5 + level / 2, len(values_S) - 1)) * se
    return se, mean - half, mean + half


def compare(
    objective: str, values: Mapping[int, float], default: Mapping[int, float], lower: bool, comparisons: int = 1
) -> Paired:
    """Compare two configurations by their values by seed; seeds that only one of them finished are left out.

    `lower` says that lower values are better; `comparisons` is how many intervals shall hold together.
    """
    both = sorted(values.keys() & default.keys())
    level = 1 - ALPHA / max(1, comparisons)
    ours_S, theirs_S = (np.array([each[seed] for seed in both], dtype=float) for each in (values, default))
    se, low, high = t_interval(ours_S - theirs_S, level)
    better, worse = (high < 0, low > 0) if lower else (low > 0, high < 0)
    verdict = BEATS if better else WORSE if worse else NONE if len(both) > 1 else UNKNOWN
    mean, other = (float(v_S.mean()) if both else math.nan for v_S in (ours_S, theirs_S))
    return Paired(objective, len(both), mean, other, mean - other, se, low, high, level, verdict)


def in_words(label: str, p: Paired) -> str:
    """The verdict as a sentence, with the number of seeds and the interval."""
    if p.seeds == 0:
        return f"{label}, {p.objective}: {p.verdict}: it and the default have no finished seed in common"
    told = f"{p.mean:.4g} against {p.default:.4g}, difference {p.difference:+.4g}"
    if p.seeds == 1:
        return f"{label}, {p.objective}: {p.verdict} from 1 seed ({told}); give tune.confirm.seeds more than one"
    interval = f"{p.level:.1%} interval {p.low:+.4g} to {p.high:+.4g}"
    return f"{label}, {p.objective}: {p.verdict} ({told}, {interval}, {p.seeds} seeds, paired)"
