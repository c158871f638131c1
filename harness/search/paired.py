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
Verdict = str
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
    verdict: Verdict


def t_interval(values_S: np.ndarray, level: float) -> tuple[float, float, float, float]:
    """(mean, standard error, low, high) of S numbers by Student's t with S - 1 degrees of freedom.

    With fewer than two numbers nothing is known of their spread: the error is NaN and the interval is the whole line.
    """
    mean = float(np.mean(values_S))
    if len(values_S) < 2:
        return mean, math.nan, -math.inf, math.inf
    from scipy.stats import t

    se = float(np.std(values_S, ddof=1)) / math.sqrt(len(values_S))
    half = float(t.ppf(0.5 + level / 2, len(values_S) - 1)) * se
    return mean, se, mean - half, mean + half


def compare(
    objective: str,
    values: Mapping[int, float],
    default: Mapping[int, float],
    lower_is_better: bool,
    comparisons: int = 1,
) -> Paired:
    """Compare two configurations by their values by seed; seeds that only one of them finished are left out."""
    both = sorted(values.keys() & default.keys())
    level = 1 - ALPHA / max(1, comparisons)
    if not both:
        nan = math.nan
        return Paired(objective, 0, nan, nan, nan, nan, -math.inf, math.inf, level, UNKNOWN)
    ours_S, theirs_S = (np.array([each[seed] for seed in both], dtype=float) for each in (values, default))
    difference, se, low, high = t_interval(ours_S - theirs_S, level)
    if len(both) < 2:
        verdict = UNKNOWN
    elif (high < 0) if lower_is_better else (low > 0):
        verdict = BEATS
    elif (low > 0) if lower_is_better else (high < 0):
        verdict = WORSE
    else:
        verdict = NONE
    return Paired(
        objective, len(both), float(ours_S.mean()), float(theirs_S.mean()), difference, se, low, high, level, verdict
    )


def in_words(label: str, p: Paired) -> str:
    """The verdict as a sentence, with the number of seeds and the interval."""
    if p.seeds == 0:
        return f"{label}, {p.objective}: {p.verdict}: it and the default have no finished seed in common"
    seeds = f"{p.seeds} seed{'s' if p.seeds > 1 else ''}"
    told = f"{p.mean:.4g} against {p.default:.4g}, difference {p.difference:+.4g}"
    if p.seeds < 2:
        return f"{label}, {p.objective}: {p.verdict} from {seeds} ({told}); give tune.confirm.seeds more than one"
    return (
        f"{label}, {p.objective}: {p.verdict} ({told}, {p.level:.1%} interval {p.low:+.4g} to {p.high:+.4g}, "
        f"{seeds}, paired)"
    )
