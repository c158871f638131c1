"""Distances of statistics against values written out by hand, and errors against the spread of fresh samples."""

import math

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.metrics import diversity
from harness.metrics.diversity import (
    Diversity,
    DiversityOptions,
    data_against_data,
    energy_mmd,
    largest_z,
    sliced_wasserstein,
    standardised,
)
from harness.tasks.templates import Templates
from tests.toys import one_thread  # noqa: F401
from tests.toys_exact import context_of, samples_of, table_task

TASK = Templates(12, classes=4, symbols=3)


def test_in_one_dimension_the_sliced_distance_is_the_distance():
    a_N1, b_N1 = np.array([[0.0], [3.0], [1.0]]), np.array([[5.0], [1.0], [3.0]])  # sorted: 0 1 3 and 1 3 5
    assert sliced_wasserstein(a_N1, b_N1) == pytest.approx(5 / 3)
    assert sliced_wasserstein(a_N1, a_N1[::-1]) == 0.0


def test_a_shift_is_measured_by_the_mean_of_its_projections():
    """E|<e, u>| for a unit vector u on the circle is 2 / pi."""
    a_NF = np.random.default_rng(0).normal(size=(50, 2))
    assert sliced_wasserstein(a_NF + [3.0, 4.0], a_NF, 4096) == pytest.approx(5 * 2 / math.pi, rel=0.02)


def test_statistics_are_standardised_by_the_reference_alone():
    a_NF, b_NF = np.array([[1.0, 7.0], [2.0, 7.0]]), np.array([[0.0, 7.0], [4.0, 7.0]])
    a, b = standardised(a_NF, b_NF)
    assert a.tolist() == [[0.5, 7.0], [1.0, 7.0]] and b.tolist() == [[0.0, 7.0], [2.0, 7.0]]


def test_energy_distance_by_hand():
    """E|a-b| = (1+3+1+1)/4, E|a-a'| = 2/2, E|b-b'| = 4/2... over all pairs, those of a point with itself included."""
    a_N1, b_N1 = np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])
    cross, own = (1 + 3 + 1 + 1) / 4, (0 + 2 + 2 + 0) / 4
    assert energy_mmd(a_N1, b_N1) == pytest.approx([math.sqrt(cross - own)])
    assert energy_mmd(a_N1, a_N1) == pytest.approx([0.0], abs=1e-9)
    weights = [np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])]
    assert energy_mmd(a_N1, b_N1, weights) == pytest.approx([math.sqrt(3), math.sqrt(cross - own)])


def test_energy_distance_in_blocks_is_the_same():
    rng = np.random.default_rng(0)
    a_NF, b_NF = rng.normal(size=(1100, 3)), rng.normal(size=(1100, 3)) + 0.3

    def mean(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1)).mean()

    expected = mean(a_NF, b_NF) - 0.5 * mean(a_NF, a_NF) - 0.5 * mean(b_NF, b_NF)
    assert energy_mmd(a_NF, b_NF)[0] ** 2 == pytest.approx(expected, rel=1e-9)


def test_largest_z_by_hand():
    a_NF, b_NF = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[5.0, 1.0], [5.0, 1.0]])
    assert largest_z(a_NF, b_NF) == pytest.approx(4.0)  # gap 4, variance 2 over 2 of one side, 0 of the other
    assert largest_z(b_NF, b_NF) == 0.0
    assert largest_z(b_NF, b_NF + [1.0, 0.0]) == math.inf


def test_data_are_as_close_as_data_and_a_lost_class_is_not(tmp_path):
    n, metric = 600, Diversity(DiversityOptions(resamples=10))
    context = context_of(TASK, tmp_path, n)
    data = metric.score(samples_of(TASK.sample(n, np.random.default_rng(7))), context).values
    assert 0.3 < data["stat_distance_ratio"][0] < 1.9 and data["stat_max_z"][0] < 4
    x_NL = TASK.sample(2 * n, np.random.default_rng(8))
    kept = x_NL[TASK.posterior(as_tensor(x_NL)).argmax(1).numpy() != 2][:n]
    lost = metric.score(samples_of(kept), context).values
    assert lost["stat_distance_ratio"][0] > 4 and lost["stat_max_z"][0] > 8
    assert lost["stat_mmd"][0] > 3 * data["stat_mmd"][0]
    assert set(lost) == {column.name for column in metric.columns}


def as_tensor(x_NL: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x_NL)


def test_ratio_is_over_the_mean_of_fresh_pairs_which_are_kept(tmp_path, monkeypatch):
    n, options = 200, DiversityOptions(resamples=5, pairs=6, directions=16)
    context, samples = context_of(TASK, tmp_path, n), samples_of(TASK.sample(n, np.random.default_rng(1)))
    values = Diversity(options).score(samples, context).values
    mean, error = data_against_data(TASK, context.data.fingerprint, n, 16, 6, tmp_path)
    assert values["stat_distance_ratio"][0] == pytest.approx(values["stat_distance"][0] / mean)
    expected = math.hypot(values["stat_distance"][1] / mean, values["stat_distance_ratio"][0] * error / mean)
    assert values["stat_distance_ratio"][1] == pytest.approx(expected)
    draws = [
        sliced_wasserstein(*standardised(*(stats_of(n, s) for s in (2 * k, 2 * k + 1))), 16) for k in range(40)
    ]  # fmt: skip
    assert abs(mean - np.mean(draws)) < 4 * math.hypot(error, np.std(draws, ddof=1) / 40**0.5)

    monkeypatch.setattr(diversity, "_drawn_statistics", lambda *_: pytest.fail("drawn again"))
    assert Diversity(options).score(samples, context).values["stat_distance_ratio"] == values["stat_distance_ratio"]
    with pytest.raises(pytest.fail.Exception):
        data_against_data(TASK, "another fingerprint", n, 16, 6, tmp_path)


def stats_of(n: int, seed: int) -> np.ndarray:
    return TASK.statistics(as_tensor(TASK.sample(n, np.random.default_rng(seed)))).numpy()


def test_errors_are_the_spread_over_fresh_samples():
    """The bootstrap of both sides against 30 fresh pairs: right where laws differ, on the safe side where they do not."""
    n, metric = 300, Diversity(DiversityOptions(resamples=60))
    for is_lost in (True, False):
        distances, mmds = [], []
        for k in range(30):
            a_NF, b_NF = stats_of(2 * n, 100 + k), stats_of(n, 200 + k)
            a_NF = (a_NF[a_NF[:, 0] < 0.5] if is_lost else a_NF)[:n]
            a_NF, b_NF = standardised(a_NF, b_NF)
            distances.append(sliced_wasserstein(a_NF, b_NF))
            mmds.append(energy_mmd(a_NF, b_NF)[0])
        errors = metric._errors(a_NF, b_NF, seed=0)
        for error, values in zip(errors, (distances, mmds), strict=True):
            assert 0.6 < error / np.std(values, ddof=1) < (1.6 if is_lost else 2.5)


def test_scores_are_a_function_of_samples_and_seed(tmp_path):
    task = table_task(3, 4)
    context, samples = context_of(task, tmp_path), samples_of(task.sample(64, np.random.default_rng(0)))
    first, second = (Diversity(DiversityOptions(pairs=3)).score(samples, context).values for _ in range(2))
    assert str(first) == str(second)  # NaN, the error of stat_max_z, equals nothing but its name


def test_other_numbers_of_samples_and_bad_options_are_refused(tmp_path):
    task = table_task(3, 4)
    with pytest.raises(UserError, match="diversity got 10 samples against 64 of the reference; use 64"):
        Diversity(DiversityOptions()).score(samples_of(np.zeros((10, 4), int)), context_of(task, tmp_path))
    for bad in ({"pairs": 1}, {"directions": 0}, {"resamples": 1}):
        with pytest.raises(UserError, match="is too few; use at least"):
            Diversity(DiversityOptions(**bad))
