"""judge=oracle: texts back to ids, exact likelihoods, and infinities that the rest of the harness survives."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from harness.config.fields import NoOptions
from harness.errors import UserError
from harness.judges.oracle import OracleJudge, SymbolReader
from harness.metrics.base import Samples
from harness.metrics.perplexity import GenerativePerplexity, GenerativePerplexityOptions
from harness.store import ResultsTable, read_json, write_json
from harness.tasks.permutation import Permutation
from tests.kit.toys import one_thread  # noqa: F401
from tests.kit.toys_exact import context_of, data_of, samples_of, table_task


def judge_of(data) -> OracleJudge:
    judge = OracleJudge(NoOptions())
    judge.prepare(data, None, "cpu", lambda text: None)
    return judge


def test_scores_are_the_law_s_and_the_perplexity_is_that_of_the_test_rows():
    task = table_task(3, 4)
    data = data_of(task, rows=50)
    judge = judge_of(data)
    scores = judge.score(["0000", "2101"])
    by_hand = -np.log(task.joint_X.numpy()[[0, 2 * 27 + 9 + 0 + 1]])
    assert scores.nll_N == pytest.approx(by_hand, abs=1e-12) and scores.tokens_N.tolist() == [4, 4]
    nll = [-math.log(task.joint_X[int("".join(map(str, row)), 3)]) for row in data.splits["test"].tolist()]
    assert judge.heldout_ppl == pytest.approx(math.exp(sum(nll) / (4 * 50)), rel=1e-12)
    assert judge.identity == "oracle/table-fingerprint-of-t/float64"


def test_features_are_the_statistics():
    task = table_task(3, 4)
    found = judge_of(data_of(task)).features(["0120", "2222"])
    assert found.dtype == np.float32 and found.shape == (2, 12)
    assert np.array_equal(found, task.statistics(torch.tensor([[0, 1, 2, 0], [2, 2, 2, 2]])).numpy())
    assert judge_of(data_of(task)).features([]).shape == (0, 12)


@pytest.mark.parametrize("text", ["012", "01201", "", "012x", "01 2"])
def test_what_is_no_sequence_is_impossible(text):
    judge = judge_of(data_of(table_task(3, 4)))
    scores = judge.score(["0000", text])
    assert np.isfinite(scores.nll_N[0]) and scores.nll_N[1] == np.inf and scores.tokens_N.tolist() == [4, 4]
    with pytest.raises(UserError, match="cannot read .* 4 symbols"):
        judge.features(["0000", text])


@pytest.mark.parametrize(
    "decode",
    [
        lambda ids: " ".join(str(int(i)) for i in ids),
        lambda ids: ", ".join(f"w{int(i)}" for i in ids),
        lambda ids: "".join("äé漢"[int(i)] for i in ids),
    ],
)
def test_other_ways_of_writing_symbols_are_read_back(decode):
    data = dataclasses.replace(data_of(table_task(3, 4)), decode=decode)
    reader = SymbolReader(data)
    for row in ([0, 1, 2, 2], [2, 0, 0, 1]):
        assert reader.ids(decode(row)) == row


@pytest.mark.parametrize(
    "decode",
    [
        lambda ids: "".join("aab"[int(i)] for i in ids),  # two symbols look the same
        lambda ids: "".join(["a", "ab", "b"][int(i)] for i in ids),  # pieces of other lengths without a separator
        lambda ids: "".join("abc"[int(i)] for i in sorted(ids)),  # the order is lost
        lambda ids: "",
    ],
)
def test_texts_that_cannot_be_read_back_are_refused_in_one_line(decode):
    data = dataclasses.replace(data_of(table_task(3, 4)), decode=decode)
    with pytest.raises(UserError, match="judge=oracle cannot read texts of toy back to its 3 symbols") as caught:
        judge_of(data)
    assert "\n" not in str(caught.value)


def test_data_without_a_task_are_refused():
    with pytest.raises(UserError, match="judge=oracle needs data with an exact answer"):
        judge_of(data_of(None))


def test_an_infinite_perplexity_is_infinite_everywhere(tmp_path):
    """A sample with p(x) = 0: said to be infinite, without an error, and kept as such in JSON and parquet."""
    task = Permutation(4)
    judge = judge_of(data_of(task))
    context = dataclasses.replace(context_of(task, tmp_path), judge=judge)
    metric = GenerativePerplexity(GenerativePerplexityOptions(resamples=20))
    valid = samples_of(task.sample(6, np.random.default_rng(0)))
    value, error = metric.score(valid, context).values["gen_ppl"]
    assert value == pytest.approx(math.exp(math.log(24) / 4)) and error == pytest.approx(0.0, abs=1e-12)
    mixed = Samples(np.concatenate([valid.x_NL, [[0, 0, 1, 2]]]), [*valid.texts, "0012"])
    scores = metric.score(mixed, context)
    assert scores.values["gen_ppl"][0] == math.inf and math.isnan(scores.values["gen_ppl"][1])
    write_json(tmp_path / "scores.json", {k: v.tolist() for k, v in scores.per_sequence.items()} | scores.values)
    assert read_json(tmp_path / "scores.json")["gen_nll"][-1] == math.inf
    ResultsTable([{"study": "s", "gen_ppl": math.inf, "gen_ppl_se": math.nan}]).write(tmp_path / "r.parquet")
    assert ResultsTable.read(tmp_path / "r.parquet")["gen_ppl"].tolist() == [math.inf]
