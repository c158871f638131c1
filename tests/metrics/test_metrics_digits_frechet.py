"""Frechet distance against closed forms."""

import types

import numpy as np
import pytest
from scipy.linalg import sqrtm

from harness.errors import UserError
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.frechet import Frechet, FrechetOptions, Moments, frechet_distance, moments


def exact(mean, covariance) -> Moments:
    return Moments(np.asarray(mean, dtype=float), np.linalg.cholesky(np.asarray(covariance, dtype=float)).T)


def test_in_one_dimension_it_is_squares_of_differences():
    # (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance(exact([1.0], [[4.0]]), exact([4.0], [[25.0]])) == pytest.approx(9 + 9)


def test_in_two_dimensions_with_covariances_that_do_not_commute():
    a, b = [[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 4.0]]
    # tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2: tr AB = 10, det AB = 12.
    closed = 1 + 4 + 4 + 5 - 2 * np.sqrt(10 + 2 * np.sqrt(12))
    assert frechet_distance(exact([0, 0], a), exact([1, 2], b)) == pytest.approx(closed)


def test_from_rows_by_hand():
    # Variances 2 and 8 (unbiased), means 0 and 3.
    a, b = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(9 + (np.sqrt(8) - np.sqrt(2)) ** 2)


def test_agrees_with_the_matrix_root_and_is_symmetric():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(150, 6)) + 0.5
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances():
    rng = np.random.default_rng(1)
    flat = np.concatenate([rng.normal(size=(50, 2)), np.zeros((50, 3))], axis=1)
    assert frechet_distance(moments(flat), moments(flat)) == pytest.approx(0, abs=1e-12)
    few = rng.normal(size=(4, 9))  # fewer rows than features
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-12)
    # Lines at a right angle: nothing shared, so the traces add up.
    across = exact_line([1, 0]), exact_line([0, 1])
    assert frechet_distance(*across) == pytest.approx(2.0)


def exact_line(direction) -> Moments:
    return Moments(np.zeros(2), np.asarray([direction], dtype=float))


def test_rows_that_cannot_be_fitted_are_refused():
    with pytest.raises(UserError, match="at least 2"):
        moments(np.zeros((1, 3)))
    with pytest.raises(UserError, match="not all finite"):
        moments(np.array([[0.0], [np.nan]]))


class Numbers:
    """A judge whose features are the numbers in the text."""

    identity = "numbers"

    def features(self, texts):
        return np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)


def scored(features, reference, tmp_path, resamples=200, seed=1):
    texts = [" ".join(map(str, row)) for row in reference.tolist()]
    made = [" ".join(map(str, row)) for row in features.tolist()]
    held = Samples(np.zeros((len(texts), 1)), texts)
    context = ScoreContext(types.SimpleNamespace(), held, Numbers(), tmp_path, seed)
    return Frechet(FrechetOptions(resamples)).score(Samples(np.zeros((len(made), 1)), made), context).values["frechet"]


def test_the_metric_and_the_size_of_its_error(tmp_path):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(400, 1))
    values = [scored(rng.normal(2.0, 1.0, size=(400, 1)), reference, tmp_path, resamples=0) for _ in range(300)]
    value, error = scored(rng.normal(2.0, 1.0, size=(400, 1)), reference, tmp_path)
    assert np.isnan(values[0][1]) and value == pytest.approx(4.0, abs=0.6)
    # d = shift^2: its deviation is 2 x shift x 1/sqrt(400) = 0.2, given the reference.
    assert np.std([v for v, _ in values]) == pytest.approx(0.2, rel=0.15) and error == pytest.approx(0.2, rel=0.2)
    assert scored(reference, reference, tmp_path)[0] == pytest.approx(0, abs=1e-9)
    again = scored(reference + 1, reference, tmp_path, seed=3)
    assert again == scored(reference + 1, reference, tmp_path, seed=3)
