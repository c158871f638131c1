"""Excess nats and validity by hand; what is infinite or not defined says so."""

import math

import numpy as np
import pytest

from harness.config.fields import NoOptions
from harness.errors import UserError
from harness.metrics.diversity import Diversity, DiversityOptions
from harness.metrics.excess import Excess, mean_and_error
from harness.metrics.variation import Variation, VariationOptions
from harness.store import ResultsTable, read_json, write_json
from harness.tasks.permutation import Permutation
from tests.kit.toys import one_thread  # noqa: F401
from tests.kit.toys_exact import TableTask, context_of, samples_of, table_task

METRIC = Excess(NoOptions())
#: Two bits: 00, 01, 10, 11.
P = np.array([0.5, 0.25, 0.25, 0.0])


def test_mean_and_error_by_hand(tmp_path):
    scores = METRIC.score(samples_of(np.array([[0, 0], [0, 1], [0, 1]])), context_of(TableTask(P, 2, 2), tmp_path))
    log2 = math.log(2)  # H = 1.5 log 2; the samples cost 1, 2 and 2 of them
    value, error = scores.values["excess_nats"]
    assert value == pytest.approx((5 / 3 - 1.5) * log2) and error == pytest.approx(
        log2 * math.sqrt(1 / 3) / math.sqrt(3)
    )
    assert scores.values["excess_valid_nats"] == scores.values["excess_nats"]
    assert scores.values["validity"] == (1.0, 0.0)
    assert scores.per_sequence["exact_nll"] == pytest.approx([log2, 2 * log2, 2 * log2])


def test_an_impossible_sample_makes_the_excess_infinite_and_shows_in_validity(tmp_path):
    x_NL = np.array([[0, 0], [1, 1], [0, 1], [1, 0]])
    scores = METRIC.score(samples_of(x_NL), context_of(TableTask(P, 2, 2), tmp_path))
    value, error = scores.values["excess_nats"]
    assert value == math.inf and math.isnan(error)
    assert scores.values["validity"] == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)))
    assert scores.values["excess_valid_nats"][0] == pytest.approx((5 / 3 - 1.5) * math.log(2))
    assert scores.per_sequence["exact_nll"][1] == math.inf


def test_no_valid_sample_at_all(tmp_path):
    scores = METRIC.score(samples_of(np.zeros((5, 4), int)), context_of(Permutation(4), tmp_path))
    assert scores.values["validity"] == (0.0, 0.0)
    assert scores.values["excess_nats"][0] == math.inf and math.isnan(scores.values["excess_valid_nats"][0])


def test_means_of_what_is_not_finite():
    assert mean_and_error(np.array([1.0, math.inf]))[0] == math.inf
    for undefined in (np.array([]), np.array([1.0, math.nan]), np.array([math.inf, math.nan])):
        assert all(math.isnan(part) for part in mean_and_error(undefined))
    value, error = mean_and_error(np.array([2.0]))
    assert value == 2.0 and math.isnan(error)


def test_an_infinite_excess_is_kept_by_json_and_parquet(tmp_path):
    x_NL = np.array([[0, 0], [1, 1]])
    scores = METRIC.score(samples_of(x_NL), context_of(TableTask(P, 2, 2), tmp_path))
    record = {"values": scores.values, "per_sequence": {k: v.tolist() for k, v in scores.per_sequence.items()}}
    write_json(tmp_path / "scores.json", record)
    read = read_json(tmp_path / "scores.json")
    assert read["values"]["excess_nats"][0] == math.inf and math.isnan(read["values"]["excess_nats"][1])
    assert read["per_sequence"]["exact_nll"] == [pytest.approx(math.log(2)), math.inf]
    row = {"study": "s", "excess_nats": math.inf, "excess_nats_se": math.nan}
    ResultsTable([row]).write(tmp_path / "r.parquet")
    frame = ResultsTable.read(tmp_path / "r.parquet")
    assert frame.loc[0, "excess_nats"] == math.inf and math.isnan(frame.loc[0, "excess_nats_se"])


def test_data_have_no_excess_and_marginals_have_the_other_way_round_of_theirs(tmp_path):
    task = table_task(3, 4, seed=1)
    context = context_of(task, tmp_path)
    value, error = METRIC.score(samples_of(task.sample(4000, np.random.default_rng(0))), context).values["excess_nats"]
    assert abs(value) < 4 * error and error < 0.03
    marginal_LV = task.marginal_LV.numpy()
    rng = np.random.default_rng(1)
    x_NL = np.stack([rng.choice(3, 4000, p=p) for p in marginal_LV], axis=1)
    exact = -np.einsum("a,b,c,d->abcd", *marginal_LV).ravel() @ np.log(task.joint_X.numpy()) - task.exact.entropy
    value, error = METRIC.score(samples_of(x_NL), context).values["excess_nats"]
    assert abs(value - exact) < 4 * error and exact > 10 * error


@pytest.mark.parametrize(
    "metric", [METRIC, Diversity(DiversityOptions()), Variation(VariationOptions())], ids=lambda m: type(m).__name__
)
def test_data_without_a_task_are_refused_in_one_line(metric, tmp_path):
    with pytest.raises(UserError, match=f"metric={type(metric).__name__.lower()} needs data with an exact answer"):
        metric.score(samples_of(np.zeros((4, 4), int)), context_of(None, tmp_path))
