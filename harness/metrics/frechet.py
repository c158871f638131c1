"""Frechet distance between Gaussians fitted to the judge's features of samples and of the reference set.

Dowson and Landau, "The Frechet distance between multivariate normal distributions" (1982), equation 4; with features of a
network of pictures it is the FID of Heusel et al. (2017). Features of two judges are two scales: only numbers of one
judge, one n and one reference compare. It is never 0 for finite sets, not even of one law: with F features the bias is of
the order of F / n of the features' variance. So the row of held-out data, of the same n, is the floor to read it against.

Shapes: N samples, M reference, F features, D rows of a root (at most F).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.config.fields import ranged
from harness.errors import UserError
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.mauve import cached_features


@dataclass(frozen=True)
class Moments:
    """Mean (F,) and a root (D, F) of the covariance: `root.T @ root` is the unbiased covariance."""

    mean_F: np.ndarray
    root_DF: np.ndarray


def moments(features_NF: np.ndarray) -> Moments:
    """Fitted in float64. Raises `UserError` for fewer than two rows or a feature that is not finite."""
    features_NF = np.asarray(features_NF, dtype=np.float64)
    if len(features_NF) < 2:
        raise UserError(
            f"frechet needs at least 2 samples for a covariance and got {len(features_NF)}; use 400 or more"
        )
    if not np.isfinite(features_NF).all():
        raise UserError("frechet's features are not all finite: the judge broke down on those samples")
    mean_F = features_NF.mean(axis=0)
    # The triangle of QR is a root without squaring, so that small eigenvalues keep their digits.
    root_DF = np.linalg.qr((features_NF - mean_F) / np.sqrt(len(features_NF) - 1), mode="r")
    return Moments(mean_F, root_DF)  # type: ignore[arg-type]  # stubs know no mode; with "r" it is the triangle alone


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`, the squared 2-Wasserstein distance of the two Gaussians.

    With roots, `C = R^T R`, the eigenvalues of `C_a C_b` are the squared singular values of `R_a R_b^T`: the trace of the
    matrix root is their sum, for singular covariances too.
    """
    shift = float(((a.mean_F - b.mean_F) ** 2).sum())
    traces = float((a.root_DF**2).sum() + (b.root_DF**2).sum())
    shared = float(np.linalg.svd(a.root_DF @ b.root_DF.T, compute_uv=False).sum())
    return max(0.0, shift + traces - 2.0 * shared)


@dataclass
class FrechetOptions:
    """The error's cost: with 1000 features each resample takes a second."""

    resamples: int = ranged(200, 2, also=(0,))  # of the bootstrap over samples; 0: no standard error


class Frechet(Metric):
    """Lower is better, down to the value of held-out data and not to 0."""

    Options = FrechetOptions
    version = "1"
    definition = (
        "squared Frechet distance between Gaussians fitted to the judge's features of samples and of the reference set; "
        "biased upwards for finite n, so held-out data's own value and not 0 is the floor; standard error by bootstrap "
        "over samples, the reference kept as it is"
    )
    columns = (Column("frechet", "Frechet distance", "", "lower"),)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """The distance and the spread of its bootstrap draws."""
        reference = moments(cached_features(context.judge, context.reference.texts, context.cache))
        features_NF = np.asarray(context.judge.features(samples.texts), dtype=np.float64)
        value = frechet_distance(moments(features_NF), reference)
        rng = np.random.default_rng(context.seed)
        n = len(features_NF)
        draws = [
            frechet_distance(moments(features_NF[rng.integers(0, n, size=n)]), reference)
            for _ in range(self.options.resamples)
        ]
        return Scores({"frechet": (value, float(np.std(draws, ddof=1)) if draws else float("nan"))})
