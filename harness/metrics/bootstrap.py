"""Standard errors of means, and by bootstrap over sequences those of ratios of means.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 6. Sequences are the unit that is drawn: rows of
`values_NK` are resampled together, so terms of one sequence stay together.

Shapes: N sequences, K per-sequence terms, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


def jackknife_error(without_N: np.ndarray) -> float:
    """Standard error of a statistic from its values without one sequence each (N,); NaN where one is not known."""
    n = len(without_N)
    return float(np.sqrt((n - 1) / n * ((without_N - without_N.mean()) ** 2).sum()))


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


def bootstrap(values_NK: np.ndarray, statistic: Statistic, resamples: int, seed: int) -> tuple[float, float]:
    """`statistic` of the sums of `values_NK` over sequences and its standard error; NaN says that it is not known.

    A resample on which the statistic is undefined (a zero denominator) is left out of the error, not of the value.
    """
    values_NK = np.asarray(values_NK, dtype=np.float64)
    if len(values_NK) == 0:
        return math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = float(statistic(values_NK.sum(axis=0)))
        draws_R = np.asarray(statistic(resampled_sums(values_NK, resamples, seed)))
    finite_R = draws_R[np.isfinite(draws_R)]
    if len(values_NK) < 2 or finite_R.size < 2 or not math.isfinite(value):
        return value, math.nan
    return value, float(finite_R.std(ddof=1))
