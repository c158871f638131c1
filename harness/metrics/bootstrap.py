"""Bootstrap over sequences: standard errors and intervals of ratios of means, of one method or a paired difference.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 6 and 13 (percentile interval). Sequences are
the unit that is drawn: rows of `values_NK` are resampled together, so terms of one sequence stay together.

Shapes: N sequences, K per-sequence terms, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: From sums over sequences (..., K) to the statistic (...). Means and ratios of means are functions of such sums.
Statistic = Callable[[np.ndarray], np.ndarray]

_CELLS = 4_000_000  # gathered float64 values held at once: 32 MB


def mean_and_error(values_N: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; NaN from too few values. The mean with an infinite value is infinite, without error."""
    n = len(values_N)
    if n == 0 or not np.isfinite(values_N).all():
        return float(values_N.sum()) if n else math.nan, math.nan
    return float(values_N.mean()), float(values_N.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap standard error and percentile interval; NaN where N < 2 says that nothing is known."""

    value: float
    se: float
    low: float
    high: float


def resampled_sums(values_NK: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums (R, K) over sequences of `resamples` draws of N rows with replacement; the same seed draws the same rows."""
    values_NK = np.asarray(values_NK, dtype=np.float64)
    n, k = values_NK.shape
    rng = np.random.default_rng(seed)
    sums_RK = np.empty((resamples, k))
    # The chunk depends on n alone, not on k: two statistics of the same sequences see the same resamples.
    chunk = max(1, _CELLS // max(1, n))
    for start in range(0, resamples, chunk):
        stop = min(resamples, start + chunk)
        rows_RN = rng.integers(0, n, size=(stop - start, n))
        for j in range(k):
            sums_RK[start:stop, j] = values_NK[:, j][rows_RN].sum(axis=1)
    return sums_RK


def _estimate(value: float, draws_R: np.ndarray, n: int, level: float) -> Estimate:
    finite_R = draws_R[np.isfinite(draws_R)]
    if n < 2 or finite_R.size < 2 or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"), float("nan"))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(finite_R, [tail, 1.0 - tail])
    return Estimate(value, float(finite_R.std(ddof=1)), float(low), float(high))


def bootstrap(
    values_NK: np.ndarray, statistic: Statistic, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """`statistic` of the sums of `values_NK` over sequences, with its standard error and percentile interval.

    A resample on which the statistic is undefined (a zero denominator) is left out of the error, not of the value.
    """
    values_NK = np.asarray(values_NK, dtype=np.float64)
    if len(values_NK) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), float("nan"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = float(statistic(values_NK.sum(axis=0)))
        draws_R = np.asarray(statistic(resampled_sums(values_NK, resamples, seed)))
    return _estimate(value, draws_R, len(values_NK), level)


def bootstrap_mean(values_N: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean over sequences with its bootstrap standard error."""
    values_N = np.asarray(values_N, dtype=np.float64)
    n = max(1, len(values_N))
    return bootstrap(values_N[:, None], lambda sums: sums[..., 0] / n, resamples, seed, level)


def paired_difference(
    a_NK: np.ndarray,
    b_NK: np.ndarray,
    statistic: Statistic,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """`statistic(a) - statistic(b)` where row i of both belongs together; each resample draws the same rows of both.

    Raises `ValueError` where the shapes differ: rows could not be paired.
    """
    a_NK, b_NK = np.asarray(a_NK, dtype=np.float64), np.asarray(b_NK, dtype=np.float64)
    if a_NK.shape != b_NK.shape:
        raise ValueError(f"paired values need one shape; got {a_NK.shape} and {b_NK.shape}")
    k = a_NK.shape[1]
    both = np.concatenate([a_NK, b_NK], axis=1)
    return bootstrap(both, lambda sums: statistic(sums[..., :k]) - statistic(sums[..., k:]), resamples, seed, level)
