"""MAUVE between samples and the study's reference set, on the judge's features.

Pillutla et al., "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers" (2021).
The score itself is computed by the authors' package `mauve-text` (GPL-3.0), which is imported only when it is called.

Shapes: N texts, F features, S k-means seeds.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.data.files import texts_digest
from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores, need_same_shape
from harness.store import Damaged
from harness.training.checkpoint import load_tensors, save_tensors

MIN_SEEDS = 5
_THREADS = 1  # fixed, so that sums are taken in the same order whatever the number of cores
_SMALL_CLUSTERS = b"WARNING clustering"


@dataclass
class MauveOptions:
    """Defaults are those of the authors' package."""

    seeds: int = ranged(MIN_SEEDS, MIN_SEEDS)  # of k-means
    buckets: int = ranged(0, 2, also=(0,))  # 0: n/10, the authors' choice
    scaling: float = ranged(5.0, 0, above=True)  # the constant c of the paper
    redo: int = ranged(5, 1)  # of k-means
    max_iter: int = ranged(500, 1)  # of k-means
    explained_variance: float = ranged(0.9, 0, 1, above=True, below=True)  # what PCA keeps before k-means
    curve_points: int = ranged(25, 1)  # mixtures on the frontier


@dataclass(frozen=True)
class MauveScores:
    """MAUVE in [0, 1] for each k-means seed, and what other samples from the same law would change at each: (S,) each."""

    value_S: np.ndarray
    spread_S: np.ndarray

    def mean_and_error(self) -> tuple[float, float]:
        """Mean over k-means seeds; standard error of other samples (the seeds see the same ones) and of the seeds."""
        seeds = float(self.value_S.var(ddof=1)) / len(self.value_S)
        return float(self.value_S.mean()), float(np.sqrt(np.mean(self.spread_S**2) + seeds))


def mauve_scores(reference_NF: np.ndarray, samples_NF: np.ndarray, options: MauveOptions, seed: int) -> MauveScores:
    """MAUVE for each of `options.seeds` k-means seeds; 1 where both quantised histograms agree.

    The spread is that of the samples' histogram: clusters and reference stay as they are.

    Raises `UserError` where the sides differ in n, a feature is not finite, or `mauve-text` is not installed.
    """
    n, m = len(reference_NF), len(samples_NF)
    if n != m:
        raise UserError(
            f"mauve got {m} samples against {n} reference texts; it needs the same n on both sides: use {n}"
        )
    for side, features_NF in (("reference", reference_NF), ("samples", samples_NF)):
        if not np.isfinite(features_NF).all():
            raise UserError(f"mauve's features of the {side} are not all finite: the judge broke down on those texts")
    buckets = _buckets(n, options)
    package = _package("mauve")
    seeds_S = np.random.SeedSequence(seed).generate_state(options.seeds) % 2**30  # faiss takes a signed 32-bit seed
    with _fixed_threads(), _without_cluster_warning():
        made = [
            package.compute_mauve(
                p_features=reference_NF,
                q_features=samples_NF,
                num_buckets=int(buckets),
                mauve_scaling_factor=options.scaling,
                kmeans_num_redo=options.redo,
                kmeans_max_iter=options.max_iter,
                kmeans_explained_var=options.explained_variance,
                divergence_curve_discretization_size=options.curve_points,
                seed=int(kmeans_seed),
                verbose=False,
            )
            for kmeans_seed in seeds_S
        ]
    spread = [_spread(each.p_hist, each.q_hist, n, options) for each in made]
    return MauveScores(np.asarray([each.mauve for each in made], dtype=np.float64), np.asarray(spread))


def _buckets(n: int, options: MauveOptions) -> int:
    buckets = options.buckets or max(2, round(n / 10))
    if n < buckets:
        raise UserError(f"mauve with buckets={buckets} needs at least as many texts a side, got n={n}; use buckets=0")
    return buckets


def _spread(p_M: np.ndarray, q_M: np.ndarray, n: int, options: MauveOptions) -> float:
    """Standard deviation of MAUVE over histograms of n samples from q, to first order; M buckets.

    `sqrt(sum_j q_j d_j^2 / n)`, with d_j the derivative towards all mass in bucket j (the infinitesimal jackknife; Efron
    1982). Resampling the histogram doubles its noise, and near 1 makes the error two to three times too large.
    """
    from scipy.special import rel_entr

    weight_W1 = np.linspace(1e-6, 1 - 1e-6, options.curve_points)[:, None]
    q_M = q_M / q_M.sum()

    def score(bucket_B: np.ndarray, step: float) -> np.ndarray:
        """MAUVE (B,) with so much of all mass in each of the buckets; a sum of M terms changes by one of them."""
        moved_M = (1.0 - step) * q_M
        mix_WM = weight_W1 * p_M + (1.0 - weight_W1) * moved_M
        more_B, mix_WB = moved_M[bucket_B] + step, mix_WM[:, bucket_B] + (1.0 - weight_W1) * step
        curves = []
        for own_M, own_B in ((moved_M, more_B), (p_M, p_M[bucket_B])):
            term_WM = rel_entr(own_M, mix_WM)
            kl_WB = term_WM.sum(1, keepdims=True) - term_WM[:, bucket_B] + rel_entr(own_B, mix_WB)
            curves.append(np.exp(-options.scaling * kl_WB))
        end_1B = np.ones((1, len(bucket_B)))
        x_CB, y_CB = np.concatenate((end_1B, curves[0], 0 * end_1B)), np.concatenate((0 * end_1B, curves[1], end_1B))
        return 0.5 * (_area(x_CB, y_CB) + _area(y_CB, x_CB))

    bucket_B, step = np.flatnonzero(q_M), 0.5 / n
    slope_B = (score(bucket_B, step) - score(bucket_B[:1], 0.0)) / step
    return float(np.sqrt(np.sum(q_M[bucket_B] * slope_B**2) / n))


def _area(x_CB: np.ndarray, y_CB: np.ndarray) -> np.ndarray:
    """Area (B,) under curves of C points in any order, by trapezoids."""
    order_CB = np.argsort(x_CB, axis=0)
    x_CB, y_CB = np.take_along_axis(x_CB, order_CB, 0), np.take_along_axis(y_CB, order_CB, 0)
    return 0.5 * (np.diff(x_CB, axis=0) * (y_CB[1:] + y_CB[:-1])).sum(0)


def cached_features(judge: Judge, texts: Sequence[str], cache: Path) -> np.ndarray:
    """The judge's features (N, F), read from `cache` where the same judge has featurised the same texts before."""
    path = Path(cache) / "features" / f"{texts_digest(texts, judge.identity)[:32]}.safetensors"
    if path.is_file():
        with contextlib.suppress(Damaged):
            return load_tensors(path)[0]["features"].numpy()
    features_NF = np.asarray(judge.features(texts), dtype=np.float32)
    save_tensors(path, {"features": torch.from_numpy(features_NF)}, {"judge": judge.identity})
    return features_NF


class Mauve(Metric):
    """MAUVE of samples against the reference set; held-out text scored in the samples' place gives the ceiling."""

    Options = MauveOptions
    version = "2"
    definition = (
        "area under the divergence frontier of k-means histograms of the judge's features (mauve-text); mean over "
        "k-means seeds; the standard error holds the spread over other samples (infinitesimal jackknife of the histogram) "
        "and over seeds"
    )
    columns = (
        Column(
            "mauve",
            "MAUVE",
            "0 to 1",
            "higher",
            least_gap=0.2,
            meaning="The row of held-out data compares human text with other human text: the ceiling, which is below 1",
        ),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` where the package is not installed."""
        for name in ("mauve", "faiss", "threadpoolctl"):  # looked for only: to import them takes two seconds
            if importlib.util.find_spec(name) is None:
                raise UserError(f"{_MISSING} (there is no {name}); pip install mauve-text")

    def check_size(self, n: int, length: int) -> None:
        _buckets(n, self.options)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """See `MauveScores.mean_and_error`."""
        need_same_shape("mauve", samples, context)
        judge = context.judge
        reference_NF = cached_features(judge, judge.read_of(context.reference.texts), context.cache)
        made = mauve_scores(reference_NF, judge.features(judge.read_of(samples.texts)), self.options, context.seed)
        return Scores({"mauve": made.mean_and_error()})


_MISSING = "metric mauve needs the package mauve-text"


def _package(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{_MISSING} ({error}); pip install mauve-text") from error


@contextlib.contextmanager
def _fixed_threads() -> Iterator[None]:
    """One thread for BLAS, OpenMP and faiss inside; what was set before is put back."""
    faiss = _package("faiss")
    before = faiss.omp_get_max_threads()
    with _package("threadpoolctl").threadpool_limits(limits=_THREADS):
        faiss.omp_set_num_threads(_THREADS)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)


@contextlib.contextmanager
def _without_cluster_warning() -> Iterator[None]:
    """Hold back faiss's line about points per cluster: ten a bucket is MAUVE's definition. All else still shows.

    faiss writes to the process's standard error from C++, where only the file descriptor can be caught.
    """
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            rest = b"".join(line for line in held if not line.startswith(_SMALL_CLUSTERS))
            if rest:
                os.write(2, rest)
