"""Distances of statistics against values written out by hand, and errors against the spread of fresh samples."""

import dataclasses
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
    reference_of,
    scale_of,
    sliced_wasserstein,
    within,
)
from harness.tasks.templates import Templates
from tests.kit.toys import one_thread  # noqa: F401
from tests.kit.toys_exact import context_of, samples_of, table_task

TASK = Templates(12, classes=4, symbols=3)


def test_in_one_dimension_the_sliced_distance_is_the_distance():
    a_N1, b_N1 = np.array([[0.0], [3.0], [1.0]]), np.array([[5.0], [1.0], [3.0]])  # sorted: 0 1 3 and 1 3 5
    assert sliced_wasserstein(a_N1, b_N1) == pytest.approx(5 / 3)
    assert sliced_wasserstein(a_N1, a_N1[::-1]) == 0.0


def test_a_shift_is_measured_by_the_mean_of_its_projections():
    """E|<e, u>| for a unit vector u on the circle is 2 / pi."""
    a_NF = np.random.default_rng(0).normal(size=(50, 2))
    assert sliced_wasserstein(a_NF + [3.0, 4.0], a_NF, 4096) == pytest.approx(5 * 2 / math.pi, rel=0.02)


def test_scales_are_standard_deviations_and_a_constant_is_left_as_it_is():
    assert scale_of(np.array([[0.0, 7.0], [4.0, 7.0]])).tolist() == [2.0, 1.0]


def test_energy_distance_by_hand():
    """E|a-b| = (1+3+1+1)/4, E|a-a'| = 4/4 = E|b-b'| over all pairs, those of a point with itself included."""
    a_N1, b_N1 = np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])
    cross, own = (1 + 3 + 1 + 1) / 4, (0 + 2 + 2 + 0) / 4
    assert within(b_N1[None]) == own
    assert energy_mmd(a_N1, b_N1[None]) == pytest.approx([math.sqrt(cross - own)])
    assert energy_mmd(a_N1, a_N1[None]) == pytest.approx([0.0], abs=1e-9)
    weights_RN = np.array([[1.0, 0.0], [0.5, 0.5]])  # the point 0 alone: |0 - b| is 2 in the mean
    assert energy_mmd(a_N1, b_N1[None], weights_RN) == pytest.approx([math.sqrt(2 - own / 2), math.sqrt(cross - own)])


def test_energy_distance_from_several_sets_is_the_root_mean_square():
    rng = np.random.default_rng(0)
    a_NF, b_SNF = rng.normal(size=(20, 2)), rng.normal(size=(3, 20, 2))
    each = [energy_mmd(a_NF, b_NF[None])[0] for b_NF in b_SNF]
    assert energy_mmd(a_NF, b_SNF)[0] ** 2 == pytest.approx(np.mean(np.square(each)))
    assert energy_mmd(a_NF, b_SNF, own=within(b_SNF)) == energy_mmd(a_NF, b_SNF)


def test_energy_distance_in_blocks_is_the_same():
    rng = np.random.default_rng(0)
    a_NF, b_NF = rng.normal(size=(1100, 3)), rng.normal(size=(1100, 3)) + 0.3

    def mean(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1)).mean()

    expected = mean(a_NF, b_NF) - 0.5 * mean(a_NF, a_NF) - 0.5 * mean(b_NF, b_NF)
    assert energy_mmd(a_NF, b_NF[None])[0] ** 2 == pytest.approx(expected, rel=1e-9)


def test_largest_z_by_hand():
    a_NF, b_NF = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[5.0, 1.0], [5.0, 1.0]])
    assert largest_z(a_NF, b_NF) == pytest.approx(4.0)  # gap 4, variance 2 over 2 of one side, 0 of the other
    assert largest_z(b_NF, b_NF) == 0.0
    assert largest_z(b_NF, b_NF + [1.0, 0.0]) == math.inf
    pool_MF = np.array([[5.0, 1.0], [6.0, 1.0], [7.0, 1.0]])  # variance 1 over 3
    assert largest_z(a_NF, pool_MF) == pytest.approx(5 / math.sqrt(1 + 1 / 3))


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
    scale_F = reference_of(TASK, n, 16).scale_F
    draws = [sliced_wasserstein(stats_of(n, 2 * k) / scale_F, stats_of(n, 2 * k + 1) / scale_F, 16) for k in range(40)]
    assert abs(mean - np.mean(draws)) < 4 * math.hypot(error, np.std(draws, ddof=1) / 40**0.5)

    monkeypatch.setattr(diversity, "_drawn_statistics", lambda *_: pytest.fail("drawn again"))
    assert Diversity(options).score(samples, context).values["stat_distance_ratio"] == values["stat_distance_ratio"]
    with pytest.raises(pytest.fail.Exception):
        data_against_data(TASK, "another fingerprint", n, 16, 6, tmp_path)


def stats_of(n: int, seed: int) -> np.ndarray:
    return TASK.statistics(as_tensor(TASK.sample(n, np.random.default_rng(seed)))).numpy()


def test_the_study_s_reference_set_plays_no_part(tmp_path):
    """It is one draw that all rows share; eight sets from the law itself take its place, the same each time."""
    metric, samples = (
        Diversity(DiversityOptions(resamples=5, pairs=3)),
        samples_of(TASK.sample(100, np.random.default_rng(1))),
    )
    context = context_of(TASK, tmp_path, 100)
    other = dataclasses.replace(context, reference=samples_of(np.zeros((64, 12), int)))
    assert str(metric.score(samples, context)) == str(metric.score(samples, other))
    reference, again = reference_of(TASK, 100, 64), Templates(12, classes=4, symbols=3)
    assert reference_of(TASK, 100, 64) is reference, "kept in memory"
    assert np.array_equal(reference_of(again, 100, 64).sets_SNF, reference.sets_SNF)
    flat = {reference.sets_SNF[k].tobytes() for k in range(8)}
    assert reference.sets_SNF.shape == (8, 100, 4) and len(flat) == 8, "no two sets are the same"
    assert np.allclose(reference.pool_MF.std(axis=0), 1.0)


def test_distances_from_the_sets_are_means_over_them(tmp_path):
    n = 100
    samples = samples_of(TASK.sample(n, np.random.default_rng(1)))
    values = Diversity(DiversityOptions(pairs=3)).score(samples, context_of(TASK, tmp_path, n)).values
    reference = reference_of(TASK, n, 64)
    a_NF = TASK.statistics(as_tensor(samples.x_NL)).numpy() / reference.scale_F
    each = [sliced_wasserstein(a_NF, b_NF) for b_NF in reference.sets_SNF]
    assert values["stat_distance"][0] == pytest.approx(np.mean(each))
    assert values["stat_mmd"][0] == pytest.approx(energy_mmd(a_NF, reference.sets_SNF)[0])
    assert values["stat_max_z"][0] == pytest.approx(largest_z(a_NF, reference.sets_SNF.reshape(-1, 4)))


def test_rows_of_data_scatter_less_than_from_one_reference_set(tmp_path):
    reference = reference_of(TASK, 200, 64)
    by_one, by_all = [], []
    for k in range(60):
        a_NF, b_NF = (stats_of(200, 300 + 2 * k + side) / reference.scale_F for side in range(2))
        by_one.append(sliced_wasserstein(a_NF, b_NF))
        by_all.append(diversity._sorted_distance(diversity._projected(a_NF, 64), reference.sorted_SND))
    assert np.std(by_all) < 0.75 * np.std(by_one)
    mean, error = data_against_data(TASK, "data", 200, 64, 20, tmp_path)
    # What is left besides the pairs' error is that of the eight sets, which all rows share.
    assert abs(np.mean(by_all) - mean) < 4 * math.hypot(error, np.std(by_one) / 8**0.5)


def test_errors_are_the_spread_over_fresh_samples():
    """The bootstrap against 100 fresh sets: about right where laws differ, on the safe side where they do not."""
    n, metric = 300, Diversity(DiversityOptions(resamples=60))
    reference = reference_of(TASK, n, 64)
    for is_lost, most in ((True, 1.8), (False, 2.5)):
        distances, mmds, errors = [], [], []
        for k in range(100):
            a_NF = stats_of(2 * n, 100 + k)
            a_NF = (a_NF[a_NF[:, 0] < 0.5] if is_lost else a_NF)[:n] / reference.scale_F
            distances.append(diversity._sorted_distance(diversity._projected(a_NF, 64), reference.sorted_SND))
            mmds.append(energy_mmd(a_NF, reference.sets_SNF, own=reference.own)[0])
            if k < 6:
                errors.append(metric._errors(a_NF, reference, seed=k))
        for error, values in zip(np.mean(errors, axis=0), (distances, mmds), strict=True):
            assert 0.8 < error / np.std(values, ddof=1) < most


def test_scores_are_a_function_of_samples_and_seed(tmp_path):
    task = table_task(3, 4)
    context, samples = context_of(task, tmp_path), samples_of(task.sample(64, np.random.default_rng(0)))
    first, second = (Diversity(DiversityOptions(pairs=3)).score(samples, context).values for _ in range(2))
    assert str(first) == str(second)  # NaN, the error of stat_max_z, equals nothing but its name


def test_too_few_samples_and_bad_options_are_refused(tmp_path):
    task = table_task(3, 4)
    with pytest.raises(UserError, match="diversity has no error from 1 samples; use study.samples=2 or more"):
        Diversity(DiversityOptions()).score(samples_of(np.zeros((1, 4), int)), context_of(task, tmp_path))
