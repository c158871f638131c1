"""Total variation by hand, its bias for true draws, and supports that cannot be listed."""

import math

import numpy as np
import pytest

from harness.metrics.variation import Variation, VariationOptions, support_counts, total_variation
from harness.store import ResultsTable, read_json, write_json
from harness.tasks.permutation import Permutation
from harness.tasks.templates import Templates
from tests.kit.toys import one_thread  # noqa: F401
from tests.kit.toys_exact import TableTask, context_of, samples_of, table_task

METRIC = Variation(VariationOptions())
P = np.array([0.5, 0.25, 0.25, 0.0])


def test_by_hand_with_mass_outside_the_support(tmp_path):
    x_NL = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])  # shares 1/2, 1/4, 0 and 1/4 outside
    assert support_counts(x_NL, np.array([[0, 0], [0, 1], [1, 0]])).tolist() == [2, 1, 0, 1]
    value, error = METRIC.score(samples_of(x_NL), context_of(TableTask(P, 2, 2), tmp_path)).values["total_variation"]
    assert value == pytest.approx(0.25) and 0 < error < 0.5


def test_the_same_law_and_one_that_shares_nothing(tmp_path):
    context = context_of(TableTask(P, 2, 2), tmp_path)
    same = METRIC.score(samples_of(np.array([[0, 0], [0, 0], [0, 1], [1, 0]])), context)
    other = METRIC.score(samples_of(np.array([[1, 1], [1, 1]])), context)
    assert same.values["total_variation"][0] == pytest.approx(0.0, abs=1e-12)
    assert other.values["total_variation"] == (1.0, 0.0)


def test_true_draws_are_at_the_value_of_data_which_is_not_zero(tmp_path):
    """For shares of n draws E|f - p| is about sqrt(2 p (1 - p) / (pi n))."""
    task, n = Permutation(5), 1000
    values = METRIC.score(samples_of(task.sample(n, np.random.default_rng(0))), context_of(task, tmp_path)).values
    expected, error = values["total_variation_data"]
    assert abs(values["total_variation"][0] - expected) < 4 * values["total_variation"][1]
    by_normal = 0.5 * 120 * math.sqrt(2 / math.pi * (1 / 120) * (119 / 120) / n)
    assert expected == pytest.approx(by_normal, rel=0.05) and error < 0.01


def test_the_error_is_the_spread_over_fresh_samples(tmp_path):
    task, rng = table_task(3, 4, seed=2), np.random.default_rng(0)
    context = context_of(task, tmp_path)
    p_X = task.joint_X.numpy()
    spread = total_variation(rng.multinomial(500, p_X, 2000), p_X).std()
    _, error = METRIC.score(samples_of(task.sample(500, rng)), context).values["total_variation"]
    assert error == pytest.approx(spread, rel=0.35)


def test_a_support_that_cannot_be_listed_has_no_value_and_is_kept_as_such(tmp_path):
    task = Templates(32)
    values = METRIC.score(samples_of(task.sample(8, np.random.default_rng(0))), context_of(task, tmp_path)).values
    assert set(values) == {column.name for column in METRIC.columns}
    assert all(math.isnan(part) for pair in values.values() for part in pair)
    write_json(tmp_path / "v.json", values)
    assert math.isnan(read_json(tmp_path / "v.json")["total_variation"][0])
    ResultsTable([{"study": "s", "total_variation": math.nan}]).write(tmp_path / "r.parquet")
    assert ResultsTable.read(tmp_path / "r.parquet")["total_variation"].isna().all()
