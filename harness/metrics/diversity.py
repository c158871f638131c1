"""Distances between the exact statistics of samples and of data: what shows that likely samples were bought with diversity.

Sliced Wasserstein-1: Bonneel et al. 2015 (J. Math. Imaging Vis. 51). Energy distance as a maximum mean discrepancy:
Sejdinovic et al. 2013 (Ann. Statist. 41, eq. 2.5 and theorem 22).

Shapes: N sequences, L tokens, F statistics, D directions, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.data.files import digest
from harness.errors import UserError
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.store import read_json, write_json
from harness.tasks.base import ExactTask
from harness.tasks.require import require_task

_VERSION = 1
_SEED = 20_250_401  # of directions and of the data-against-data pairs: the same for every study
_ROWS = 512  # of a distance matrix at a time


@lru_cache(maxsize=8)
def _directions(statistics: int, count: int) -> np.ndarray:
    """`count` fixed unit vectors (F, D), uniform on the sphere."""
    direction_FD = np.random.default_rng([_SEED, statistics]).normal(size=(statistics, count))
    return direction_FD / np.linalg.norm(direction_FD, axis=0)


def standardised(samples_NF: np.ndarray, reference_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides over the reference's standard deviations; a statistic that is constant there is left as it is."""
    scale_F = reference_NF.std(axis=0)
    scale_F = np.where(scale_F > 1e-9, scale_F, 1.0)
    return samples_NF / scale_F, reference_NF / scale_F


def sliced_wasserstein(samples_NF: np.ndarray, reference_NF: np.ndarray, directions: int = 64) -> float:
    """Mean over fixed random directions of the Wasserstein-1 distance of the projections; 0 for equal sets.

    Both sides have the same N, so each distance is the mean difference of sorted values.
    """
    direction_FD = _directions(samples_NF.shape[1], directions)
    return _sorted_distance(samples_NF @ direction_FD, reference_NF @ direction_FD)


def _sorted_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    return float(np.abs(np.sort(a_ND, axis=0) - np.sort(b_ND, axis=0)).mean())


def energy_mmd(samples_NF: np.ndarray, reference_NF: np.ndarray, weights: list[np.ndarray] | None = None) -> np.ndarray:
    """Square root of half the energy distance, `E|a - b| - E|a - a'| / 2 - E|b - b'| / 2`, over all pairs (biased), (R,).

    It is the MMD of the kernel `(|a| + |b| - |a - b|) / 2`. `weights` are two arrays (R, N), one for each side, whose
    rows sum to 1; by default one row of 1 / N each.
    """
    uniform = [np.full((1, len(side)), 1.0 / len(side)) for side in (samples_NF, reference_NF)]
    a_RN, b_RN = uniform if weights is None else weights
    cross_R = _mean_distance(samples_NF, reference_NF, a_RN, b_RN)
    own_R = _mean_distance(samples_NF, samples_NF, a_RN, a_RN) + _mean_distance(reference_NF, reference_NF, b_RN, b_RN)
    return np.sqrt(np.maximum(cross_R - 0.5 * own_R, 0.0))  # rounding can leave a negative zero


def _mean_distance(a_NF: np.ndarray, b_NF: np.ndarray, a_RN: np.ndarray, b_RN: np.ndarray) -> np.ndarray:
    total_R = np.zeros(len(a_RN))
    for start in range(0, len(a_NF), _ROWS):
        rows = slice(start, start + _ROWS)
        # Exact differences: the faster matrix form loses digits exactly where two sets are close.
        distance = torch.cdist(
            torch.from_numpy(a_NF[rows]), torch.from_numpy(b_NF), compute_mode="donot_use_mm_for_euclid_dist"
        ).numpy()
        total_R += ((a_RN[:, rows] @ distance) * b_RN).sum(axis=1)
    return total_R


def largest_z(samples_NF: np.ndarray, reference_NF: np.ndarray) -> float:
    """Largest difference of means over the statistics, each in units of its standard error.

    With F statistics of the same law it is about sqrt(2 log F); a class that is lost shows as a large value. Infinite
    where two constants differ.
    """
    gap_F = np.abs(samples_NF.mean(axis=0) - reference_NF.mean(axis=0))
    error_F = np.sqrt(sum(side.var(axis=0, ddof=1) / len(side) for side in (samples_NF, reference_NF)))
    gap_F = np.where(gap_F > 1e-12, gap_F, 0.0)  # two means of the same constant differ by rounding alone
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(gap_F / error_F, nan=0.0, posinf=math.inf).max())


def data_against_data(
    task: ExactTask, fingerprint: str, n: int, directions: int, pairs: int, cache: Path
) -> tuple[float, float]:
    """Mean sliced distance of `pairs` pairs of fresh data sets of n sequences, and its standard error; kept in `cache`."""
    key = digest([_VERSION, fingerprint, n, directions, pairs])[:24]
    path = Path(cache) / "diversity" / f"{key}.json"
    if not path.is_file():
        distances = []
        for pair in range(pairs):
            sides = [_drawn_statistics(task, n, np.random.default_rng([_SEED, pair, side])) for side in range(2)]
            distances.append(sliced_wasserstein(*standardised(*sides), directions))
        write_json(path, {"task": task.name, "n": n, "distances": distances})
    distances = np.array(read_json(path)["distances"])
    return float(distances.mean()), float(distances.std(ddof=1) / math.sqrt(len(distances)))


def _drawn_statistics(task: ExactTask, n: int, rng: np.random.Generator) -> np.ndarray:
    return task.statistics(torch.from_numpy(task.sample(n, rng))).numpy()


@dataclass
class DiversityOptions:
    """`directions` of the sliced distance, `pairs` of data sets for its data-against-data value, `resamples` of errors."""

    directions: int = 64
    pairs: int = 20
    resamples: int = 50


class Diversity(Metric):
    """Compares `ExactTask.statistics` of samples and of the reference set; about 1 (the ratio) is as good as data."""

    Options = DiversityOptions
    version = "1"
    definition = (
        "distances between the task's exact statistics of the samples and of the reference set, each statistic over the "
        "reference's standard deviation: sliced Wasserstein-1 over fixed random directions, and that over its mean "
        "between pairs of fresh data sets of the same n (ratio; 1 is as close as data); MMD of the distance kernel, all "
        "pairs; largest difference of means in standard errors. Standard errors by bootstrap over sequences of both sides"
    )
    columns = (
        Column("stat_distance_ratio", "Statistics' distance", "times that of data", "lower"),
        Column("stat_distance", "Sliced Wasserstein distance of statistics", "standard deviations", "lower", False),
        Column("stat_mmd", "MMD of statistics (distance kernel)", "sqrt of standard deviations", "lower", False),
        Column("stat_max_z", "Largest difference of mean statistics", "standard errors", "lower", False),
    )

    def __init__(self, options: DiversityOptions) -> None:
        super().__init__(options)
        for name, least in (("directions", 1), ("pairs", 2), ("resamples", 2)):
            if getattr(options, name) < least:
                raise UserError(f"diversity with {name}={getattr(options, name)} is too few; use at least {least}")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """The four columns; samples and reference must be of the same number, as a distance depends on it."""
        task = require_task(context.data.task, "metric=diversity")
        n = len(context.reference.x_NL)
        if len(samples.x_NL) != n:
            raise UserError(f"diversity got {len(samples.x_NL)} samples against {n} of the reference; use {n}")
        sides = [_statistics(task, side.x_NL) for side in (samples, context.reference)]
        a_NF, b_NF = standardised(*sides)
        distance = sliced_wasserstein(a_NF, b_NF, self.options.directions)
        mmd = float(energy_mmd(a_NF, b_NF)[0])
        error, mmd_error = self._errors(a_NF, b_NF, context.seed)
        of_data, of_data_error = data_against_data(
            task, context.data.fingerprint, n, self.options.directions, self.options.pairs, context.cache
        )
        ratio = distance / of_data
        ratio_error = math.hypot(error / of_data, ratio * of_data_error / of_data)
        return Scores(
            {
                "stat_distance_ratio": (ratio, ratio_error),
                "stat_distance": (distance, error),
                "stat_mmd": (mmd, mmd_error),
                "stat_max_z": (largest_z(*sides), math.nan),
            }
        )

    def _errors(self, a_NF: np.ndarray, b_NF: np.ndarray, seed: int) -> tuple[float, float]:
        """Standard errors of both distances from the same resamples of both sides."""
        direction_FD = _directions(a_NF.shape[1], self.options.directions)
        a_ND, b_ND = a_NF @ direction_FD, b_NF @ direction_FD
        n, sliced, weights = len(a_NF), [], ([], [])
        for a_rows, b_rows in _resamples(n, self.options.resamples, seed):
            sliced.append(_sorted_distance(a_ND[a_rows], b_ND[b_rows]))
            for side, rows in zip(weights, (a_rows, b_rows), strict=True):
                side.append(np.bincount(rows, minlength=n) / n)
        mmd_R = energy_mmd(a_NF, b_NF, [np.stack(side) for side in weights])
        return float(np.std(sliced, ddof=1)), float(mmd_R.std(ddof=1))


def _resamples(n: int, count: int, seed: int) -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(0, n, n), rng.integers(0, n, n)


def _statistics(task: ExactTask, x_NL: np.ndarray) -> np.ndarray:
    return task.statistics(torch.from_numpy(np.asarray(x_NL, dtype=np.int64))).numpy()
