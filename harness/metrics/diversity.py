"""Distances between the exact statistics of samples and of data: what shows that likely samples were bought with diversity.

Sliced Wasserstein-1: Bonneel et al. 2015 (J. Math. Imaging Vis. 51). Energy distance as a maximum mean discrepancy:
Sejdinovic et al. 2013 (Ann. Statist. 41, eq. 2.5 and theorem 22).

The samples are compared with several fresh data sets, not with the study's reference set: that one is shared by all rows,
and its own chance would move all of them together.

Shapes: N sequences, M sequences of another number, L tokens, F statistics, S reference sets, D directions, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.data.files import digest
from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.store import read_json, write_json
from harness.tasks.base import ExactTask, require_task

_VERSION = 3
_SEED = 20_250_401  # of directions, reference sets and data-against-data pairs: the same for every study
_SETS = 8  # reference sets
_ROWS = 512  # of a distance matrix at a time


@lru_cache(maxsize=8)
def _directions(statistics: int, count: int) -> np.ndarray:
    """`count` fixed unit vectors (F, D), uniform on the sphere."""
    direction_FD = np.random.default_rng([_SEED, statistics]).normal(size=(statistics, count))
    return direction_FD / np.linalg.norm(direction_FD, axis=0)


def scale_of(reference_NF: np.ndarray) -> np.ndarray:
    """Standard deviation of each statistic (F,), 1 where it is constant."""
    scale_F = reference_NF.std(axis=0)
    return np.where(scale_F > 1e-9, scale_F, 1.0)


def sliced_wasserstein(samples_NF: np.ndarray, reference_NF: np.ndarray, directions: int = 64) -> float:
    """Mean over fixed random directions of the Wasserstein-1 distance of the projections; 0 for equal sets.

    Both sides have the same N, so each distance is the mean difference of sorted values.
    """
    return _sorted_distance(_projected(samples_NF, directions), _projected(reference_NF, directions))


def _projected(side_NF: np.ndarray, directions: int) -> np.ndarray:
    """Projections, sorted along each direction (N, D)."""
    return np.sort(side_NF @ _directions(side_NF.shape[1], directions), axis=0)


def _sorted_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Of sorted projections; `b_ND` may be (S, N, D), and the distance is the mean over its sets."""
    return float(np.abs(a_ND - b_ND).mean())


def energy_mmd(
    samples_NF: np.ndarray,
    reference_SNF: np.ndarray,
    weights_RN: np.ndarray | None = None,
    own: float | None = None,
) -> np.ndarray:
    """Square root of half the energy distance, `E|a - b| - E|a - a'| / 2 - E|b - b'| / 2`, over all pairs (biased), (R,).

    It is the MMD of the kernel `(|a| + |b| - |a - b|) / 2`; from several reference sets its root mean square over them.
    Each row of `weights_RN` weighs the samples and sums to 1 (default: one row of 1 / N each); `own` is `E|b - b'|`, the
    mean within the sets, where it is known already.
    """
    n, statistics = samples_NF.shape
    weights_RN = np.full((1, n), 1.0 / n) if weights_RN is None else weights_RN
    own = within(reference_SNF) if own is None else own
    cross_R, own_R = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    pool_MF = reference_SNF.reshape(-1, statistics)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        cross_R += weights_RN[:, rows] @ _distances(samples_NF[rows], pool_MF).mean(axis=1)
        own_R += ((weights_RN[:, rows] @ _distances(samples_NF[rows], samples_NF)) * weights_RN).sum(axis=1)
    return np.sqrt(np.maximum(cross_R - 0.5 * (own_R + own), 0.0))  # rounding can leave a negative zero


def within(reference_SNF: np.ndarray) -> float:
    """Mean distance of two members of the same set, over all pairs (those of a member with itself included) and sets."""
    blocks = range(0, reference_SNF.shape[1], _ROWS)
    total = sum(_distances(b_NF[i : i + _ROWS], b_NF).sum() for b_NF in reference_SNF for i in blocks)
    return float(total) / (reference_SNF.shape[0] * reference_SNF.shape[1] ** 2)


def _distances(a_NF: np.ndarray, b_MF: np.ndarray) -> np.ndarray:
    # Exact differences: the faster matrix form loses digits exactly where two sets are close.
    return torch.cdist(
        torch.from_numpy(a_NF), torch.from_numpy(b_MF), compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()


def largest_z(samples_NF: np.ndarray, reference_MF: np.ndarray) -> float:
    """Largest difference of means over the statistics, each in units of its standard error.

    With F statistics of the same law it is about sqrt(2 log F); a class that is lost shows as a large value. Infinite
    where two constants differ.
    """
    gap_F = np.abs(samples_NF.mean(axis=0) - reference_MF.mean(axis=0))
    error_F = np.sqrt(sum(side.var(axis=0, ddof=1) / len(side) for side in (samples_NF, reference_MF)))
    gap_F = np.where(gap_F > 1e-12, gap_F, 0.0)  # two means of the same constant differ by rounding alone
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(gap_F / error_F, nan=0.0, posinf=math.inf).max())


@dataclass(frozen=True)
class Reference:
    """Statistics of the reference sets over the standard deviations of all of them together, and what follows from them."""

    scale_F: np.ndarray
    sets_SNF: np.ndarray
    sorted_SND: np.ndarray
    own: float

    @property
    def pool_MF(self) -> np.ndarray:
        """All sets as one."""
        return self.sets_SNF.reshape(-1, self.sets_SNF.shape[2])


@lru_cache(maxsize=4)
def reference_of(task: ExactTask, n: int, directions: int) -> Reference:
    """The reference sets of n sequences each: the same for every study of a task with the same options."""
    drawn_SNF = np.stack([_drawn_statistics(task, n, k, 2) for k in range(_SETS)])
    scale_F = scale_of(drawn_SNF.reshape(-1, drawn_SNF.shape[2]))
    sets_SNF = drawn_SNF / scale_F
    sorted_SND = np.stack([_projected(side_NF, directions) for side_NF in sets_SNF])
    return Reference(scale_F, sets_SNF, sorted_SND, within(sets_SNF))


def data_against_data(
    task: ExactTask, fingerprint: str, n: int, directions: int, pairs: int, cache: Path
) -> tuple[float, float]:
    """Mean sliced distance of `pairs` pairs of fresh data sets of n sequences, and its standard error; kept in `cache`.

    Statistics are over the standard deviations of the reference sets.
    """
    key = digest([_VERSION, fingerprint, n, directions, pairs])[:24]
    path = Path(cache) / "diversity" / f"{key}.json"
    if not path.is_file():
        scale_F = reference_of(task, n, directions).scale_F
        sides = ([_drawn_statistics(task, n, pair, side) / scale_F for side in range(2)] for pair in range(pairs))
        found = [sliced_wasserstein(one, other, directions) for one, other in sides]
        write_json(path, {"task": task.name, "n": n, "distances": found})
    distances = np.array(read_json(path)["distances"])
    return float(distances.mean()), float(distances.std(ddof=1) / math.sqrt(len(distances)))


def _drawn_statistics(task: ExactTask, n: int, draw: int, side: int) -> np.ndarray:
    """Of fresh data. Sides 0 and 1 are pairs; the reference sets are side 2, as numpy takes a seed without side for side 0."""
    return _statistics(task, task.sample(n, np.random.default_rng([_SEED, draw, side])))


def _statistics(task: ExactTask, x_NL: np.ndarray) -> np.ndarray:
    return task.statistics(torch.from_numpy(np.asarray(x_NL, dtype=np.int64))).numpy()


@dataclass
class DiversityOptions:
    """How finely distances are estimated."""

    directions: int = ranged(64, 1)  # of the sliced distance
    pairs: int = ranged(20, 2)  # of data sets for the value of data against data
    resamples: int = ranged(50, 2)  # of the bootstrap that gives errors


class Diversity(Metric):
    """Compares `ExactTask.statistics` of samples and of fresh data; about 1 (the ratio) is as good as data."""

    Options = DiversityOptions
    version = "3"
    definition = (
        f"distances between the task's exact statistics of the samples and of {_SETS} fresh data sets of the same n (the "
        "same for all rows, drawn from the law itself), each statistic over its standard deviation in those sets: mean "
        "over the sets of the sliced Wasserstein-1 distance over fixed random directions, and that over its mean between "
        "pairs of fresh data sets (ratio; 1 is as close as data); root mean square over the sets of the MMD of the "
        "distance kernel, all pairs; largest difference of means from all sets together, in standard errors. Standard "
        "errors by bootstrap over the sequences of the samples"
    )
    columns = (
        Column("stat_distance_ratio", "Statistics' distance", "times that of data", "lower"),
        Column("stat_distance", "Sliced Wasserstein distance of statistics", "standard deviations", "lower", False),
        Column("stat_mmd", "MMD of statistics (distance kernel)", "sqrt of standard deviations", "lower", False),
        Column("stat_max_z", "Largest difference of mean statistics", "standard errors", "lower", False),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` where the data's law is not known."""
        require_task(data.task, "metric=diversity")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """The four columns; of the reference sets as many sequences are drawn as there are samples."""
        task = require_task(context.data.task, "metric=diversity")
        n, directions = len(samples.x_NL), self.options.directions
        if n < 2:
            raise UserError(f"diversity has no error from {n} samples; use study.samples=2 or more")
        reference = reference_of(task, n, directions)
        a_NF = _statistics(task, samples.x_NL) / reference.scale_F
        distance = _sorted_distance(_projected(a_NF, directions), reference.sorted_SND)
        mmd = float(energy_mmd(a_NF, reference.sets_SNF, own=reference.own)[0])
        error, mmd_error = self._errors(a_NF, reference, context.seed)
        of_data, of_data_error = data_against_data(
            task, context.data.fingerprint, n, directions, self.options.pairs, context.cache
        )
        ratio = distance / of_data
        ratio_error = math.hypot(error / of_data, ratio * of_data_error / of_data)
        return Scores(
            {
                "stat_distance_ratio": (ratio, ratio_error),
                "stat_distance": (distance, error),
                "stat_mmd": (mmd, mmd_error),
                "stat_max_z": (largest_z(a_NF, reference.pool_MF), math.nan),
            }
        )

    def _errors(self, a_NF: np.ndarray, reference: Reference, seed: int) -> tuple[float, float]:
        """Standard errors of both distances from the same resamples of the samples; the reference sets stay."""
        n, rng = len(a_NF), np.random.default_rng(seed)
        rows_RN = rng.integers(0, n, (self.options.resamples, n))
        sliced = [
            _sorted_distance(_projected(a_NF[rows_N], self.options.directions), reference.sorted_SND)
            for rows_N in rows_RN
        ]
        weights_RN = np.stack([np.bincount(rows_N, minlength=n) / n for rows_N in rows_RN])
        mmd_R = energy_mmd(a_NF, reference.sets_SNF, weights_RN, reference.own)
        return float(np.std(sliced, ddof=1)), float(mmd_R.std(ddof=1))
