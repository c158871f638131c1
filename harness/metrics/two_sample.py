"""Can samples be told from held-out data by their nearest neighbour? Leave-one-out 1-NN two-sample accuracy.

Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (2017), section 3 and appendix: samples and reference are
pooled, and each point is given the side of its nearest other point. 1/2 says that the two cannot be told apart, 1 that
they are apart, 0 that each sample is a copy of a reference point. A copy of a *training* picture is not seen.

Shapes: N samples and N reference points, P = 2 N of both, L tokens.
"""

from __future__ import annotations

import math

import numpy as np

from harness.config.fields import NoOptions
from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores, need_same_shape


def neighbour_weights(points_PL: np.ndarray) -> np.ndarray:
    """(P, P): row i holds 1/k at each of the k nearest other points of i, in Euclidean distance, and 0 elsewhere.

    Distances are squared integers and so exact: ties are ties. They are shared out evenly, which is the expectation over
    a fair choice between them. Another point of the same place is a neighbour at distance 0, whichever side it is of.
    """
    # Whole numbers below 2^53 are exact in float64, and matrix products of integers are slow.
    points_PL = np.asarray(points_PL, dtype=np.float64)
    square_P = (points_PL**2).sum(axis=1)
    distance_PP = square_P[:, None] + square_P[None, :] - 2.0 * (points_PL @ points_PL.T)
    np.fill_diagonal(distance_PP, np.inf)
    nearest_PP = distance_PP == distance_PP.min(axis=1, keepdims=True)
    return nearest_PP / nearest_PP.sum(axis=1, keepdims=True)


def two_sample_accuracy(samples_NL: np.ndarray, reference_NL: np.ndarray) -> dict[str, tuple[float, float]]:
    """`(accuracy, standard error)` over all points, over the samples and over the reference, by column name.

    For one law the expectation is (N - 1) / (2 N - 1), a little below 1/2. The error of the whole is that of a random
    assignment of sides (`null_variance`), times `4 p (1 - p)` where the accuracy p is not 1/2: an approximation there. That
    of one side counts that points which share a neighbour j are right together, `p (1 - p) sum_j c_j^2 / N^2` with `c_j` the
    weight that the side gives to j; it is approximate and rather too large (up to twice, where most points are tied).
    Raises `UserError` for sides of different sizes or fewer than 2 points.
    """
    n = len(samples_NL)
    if n < 2 or len(reference_NL) != n:
        raise UserError(
            f"two_sample got {n} samples and {len(reference_NL)} reference rows; it needs as many of both, at least 2"
        )
    weight_PP = neighbour_weights(np.concatenate([samples_NL, reference_NL]))
    is_sample_P = np.arange(2 * n) < n
    right_P = (weight_PP * (is_sample_P[:, None] == is_sample_P[None, :])).sum(axis=1)
    p = float(right_P.mean())
    found = {"two_sample": (p, math.sqrt(4 * p * (1 - p) * null_variance(weight_PP)))}
    for name, side_P in (("two_sample_samples", is_sample_P), ("two_sample_data", ~is_sample_P)):
        p = float(right_P[side_P].mean())
        chosen_P = weight_PP[side_P].sum(axis=0)
        found[name] = (p, math.sqrt(max(0.0, p * (1 - p)) * float((chosen_P**2).sum())) / n)
    return found


def null_variance(weight_PP: np.ndarray) -> float:
    """Variance of the accuracy when half of the points, chosen at random, are called samples; exact for fixed points.

    With sides s = +-1 the accuracy is `1/2 + sum over pairs b_ij s_i s_j / (2 P)`, `b = w + w^T`. For halves of equal size
    `E s_i s_j = -1 / (P - 1)` and `E s_i s_j s_k s_l = 3 / ((P - 1)(P - 3))`, and pairs of pairs are counted by the points
    that they share (as in Friedman and Rafsky 1979, section 4, for another graph).
    """
    points = len(weight_PP)
    pair_PP = weight_PP + weight_PP.T
    total, squares = pair_PP.sum() / 2, (pair_PP**2).sum() / 2
    touching = (pair_PP.sum(axis=1) ** 2).sum() - 2 * squares  # products of two pairs with one point in common
    apart = total**2 - squares - touching
    two, four = -1 / (points - 1), 3 / ((points - 1) * (points - 3))
    variance = squares + touching * two + apart * four - (total * two) ** 2
    return max(0.0, float(variance)) / (2 * points) ** 2


class TwoSample(Metric):
    """1/2 is the aim, above it samples are told apart; both sides are kept apart in the results."""

    Options = NoOptions
    version = "1"
    definition = (
        "leave-one-out accuracy of the nearest neighbour (Euclidean, of grey levels) in telling samples from the reference "
        "set; 0.5 says that they cannot be told apart, 1 that they are apart, below 0.5 that samples lie on reference "
        "points; neighbours at equal distance share the vote"
    )
    columns = (
        Column("two_sample", "1-NN accuracy", "0.5 is ideal", "data"),
        Column("two_sample_samples", "1-NN accuracy on samples", "", "data", headline=False),
        Column("two_sample_data", "1-NN accuracy on data", "", "data", headline=False),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` where ids have no order, so that distances mean nothing."""
        if data.render is None and data.vocab_size > 2:
            raise UserError(
                f"two_sample measures distances between grey levels and ids of data {data.name} have no order; "
                "leave metrics.two_sample out or use data=digits"
            )

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """See `two_sample_accuracy`."""
        need_same_shape("two_sample", samples, context)
        return Scores(two_sample_accuracy(samples.x_NL, context.reference.x_NL))
