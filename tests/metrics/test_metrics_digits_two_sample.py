"""Nearest-neighbour two-sample accuracy on sets whose answer is known."""

import itertools
import math
import types

import numpy as np
import pytest

from harness.config.fields import NoOptions
from harness.errors import UserError
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.two_sample import (
    TwoSample,
    neighbour_weights,
    null_variance,
    two_sample_accuracy,
)


def column(*values: int) -> np.ndarray:
    return np.array(values)[:, None]


def accuracies(samples, reference) -> list[float]:
    return [value for value, _ in two_sample_accuracy(samples, reference).values()]


def test_far_apart_and_alternating():
    assert accuracies(column(0, 1, 3), column(100, 101, 103)) == [1.0, 1.0, 1.0]
    # On a line with growing gaps each point's neighbour is the one before it, of the other side; 0's is 1.
    assert accuracies(column(0, 3, 10), column(1, 6, 15)) == [0.0, 0.0, 0.0]


def test_sides_are_kept_apart():
    # Samples 50 and 51 sit together away from the data; 0's neighbour is 2, of the data, and 4 and 2 have each other.
    found = two_sample_accuracy(column(0, 50, 51), column(2, 3, 10))
    # 0 -> 2 wrong; 50, 51 right; 2 -> 3, 3 -> 2, 10 -> 3 right.
    assert [found[k][0] for k in ("two_sample", "two_sample_samples", "two_sample_data")] == pytest.approx(
        [5 / 6, 2 / 3, 1]
    )


def test_copies_of_the_reference_are_seen():
    points = np.random.default_rng(0).integers(0, 17, size=(30, 64))
    assert accuracies(points, points) == [0.0, 0.0, 0.0]


def test_ties_share_the_vote():
    # All in one place: each has n - 1 neighbours of its own side and n of the other.
    n = 5
    assert accuracies(np.zeros((n, 3)), np.zeros((n, 3))) == pytest.approx([(n - 1) / (2 * n - 1)] * 3)
    # 0 has a sample at 2 and a reference point at -2 as nearest: half right. 2 -> 0 is right, -2 -> 0 and 9 -> 2 are not.
    assert accuracies(column(0, 2), column(-2, 9)) == pytest.approx([1.5 / 4, 1.5 / 2, 0])
    weights = neighbour_weights(column(0, 2, -2, 9))
    assert weights[0].tolist() == [0, 0.5, 0.5, 0] and weights.sum(axis=1).tolist() == [1, 1, 1, 1]


def test_distances_are_exact_at_the_size_of_large_ids():
    # Squares are near 10^10, and the neighbours differ by one.
    assert neighbour_weights(column(100_000, 99_990, 100_009))[0].tolist() == [0, 0, 1]


def test_expectation_and_error_are_those_of_all_assignments_of_sides():
    points = np.random.default_rng(3).integers(0, 6, size=(8, 2))
    found = []
    for chosen in itertools.combinations(range(8), 4):
        rest = [i for i in range(8) if i not in chosen]
        found.append(accuracies(points[list(chosen)], points[rest])[0])
    assert np.mean(found) == pytest.approx(3 / 7)
    assert np.var(found) == pytest.approx(null_variance(neighbour_weights(points)), rel=1e-12)


def test_same_law_is_a_half_within_the_error():
    rng = np.random.default_rng(4)
    value, error = two_sample_accuracy(*rng.integers(0, 17, size=(2, 400, 64)))["two_sample"]
    assert 0.01 < error < 0.03 and abs(value - 399 / 799) < 4 * error


def test_no_error_where_all_are_told_apart():
    assert two_sample_accuracy(column(0, 1), column(50, 51))["two_sample"] == (1.0, 0.0)


def context(reference, render, vocab=17) -> ScoreContext:
    data = types.SimpleNamespace(name="words", render=render, vocab_size=vocab)
    return ScoreContext(data, Samples(reference, []), None, None, 0)


def test_the_metric_needs_ids_with_an_order_and_equal_sizes():
    metric, points = TwoSample(NoOptions()), column(0, 1, 7)
    scores = metric.score(Samples(points, []), context(points + 50, render=len))
    assert set(scores.values) == {c.name for c in metric.columns} and scores.values["two_sample"][0] == 1.0
    assert [c.name for c in metric.columns if c.headline] == ["two_sample"]
    with pytest.raises(UserError, match="have no order"):
        metric.check(context(points, render=None).data, None)
    metric.check(context(points, render=None, vocab=2).data, None)
    metric.score(Samples(points, []), context(points, render=None, vocab=2))  # Hamming distance
    with pytest.raises(UserError, match="use 3 samples of 1 tokens"):
        metric.score(Samples(points[:2], []), context(points, render=len))
    with pytest.raises(UserError, match="at least 2"):
        two_sample_accuracy(points[:1], points[:1])
    assert not any(math.isnan(part) for pair in scores.values.values() for part in pair)
