import math

import numpy as np
import pytest

from harness.judges.base import TextScores
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.bootstrap import bootstrap, resampled_sums
from harness.metrics.perplexity import (
    GenerativePerplexity,
    GenerativePerplexityOptions,
    meanseq_of_sums,
    perplexity_terms,
    pooled_of_sums,
    seqmean_of_sums,
)
from harness.report.aggregate import tradeoff

NLL = np.array([2.0, 12.0])
TOKENS = np.array([2, 4])


def value(definition, nll, tokens) -> float:
    return bootstrap(perplexity_terms(nll, tokens), definition, 2, 0)[0]


def bootstrap_mean(values_N, resamples=1000, seed=0):
    return bootstrap(values_N[:, None], lambda sums: sums[..., 0] / len(values_N), resamples, seed)


def context(judge) -> ScoreContext:
    return ScoreContext(data=None, reference=None, judge=judge, cache=None, seed=3)


class FixedJudge:
    def read_of(self, texts):
        return texts

    def __init__(self, nll, tokens, chars=None, merges=False):
        self.scores = TextScores(np.asarray(nll, dtype=np.float64), np.asarray(tokens), chars and np.asarray(chars))
        self.merges = merges

    def score(self, texts):
        return self.scores


def test_three_definitions_by_hand():
    assert value(pooled_of_sums, NLL, TOKENS) == pytest.approx(math.exp(14 / 6))
    assert value(seqmean_of_sums, NLL, TOKENS) == pytest.approx(math.exp((1.0 + 3.0) / 2))
    assert value(meanseq_of_sums, NLL, TOKENS) == pytest.approx((math.e + math.e**3) / 2)


def test_sequences_without_scored_tokens_are_counted_and_change_nothing_else():
    nll, tokens = np.append(NLL, 0.0), np.append(TOKENS, 0)
    for definition in (pooled_of_sums, seqmean_of_sums, meanseq_of_sums):
        assert value(definition, nll, tokens) == pytest.approx(value(definition, NLL, TOKENS))
    judge = FixedJudge(nll, tokens)
    scores = GenerativePerplexity(GenerativePerplexityOptions()).score(
        Samples(np.zeros((3, 4)), ["a"] * 3), context(judge)
    )
    share, se = scores.values["gen_unscored"]
    assert share == pytest.approx(1 / 3)
    assert se == pytest.approx(math.sqrt(2 / 9 / 3))
    assert scores.per_sequence["gen_nll"].tolist() == nll.tolist()
    assert scores.per_sequence["gen_tokens"].tolist() == tokens.tolist()


def test_nothing_scored_is_nan_not_a_number():
    assert math.isnan(value(pooled_of_sums, np.zeros(3), np.zeros(3)))
    metric = GenerativePerplexity(GenerativePerplexityOptions(resamples=10))
    scores = metric.score(Samples(np.zeros((3, 4)), [""] * 3), context(FixedJudge([0, 0, 0], [0, 0, 0])))
    assert math.isnan(scores.values["gen_ppl"][0]) and math.isnan(scores.values["gen_ppl"][1])
    assert scores.values["gen_unscored"][0] == 1.0


def test_columns_are_what_is_scored():
    metric = GenerativePerplexity(GenerativePerplexityOptions(resamples=10))
    scores = metric.score(Samples(np.zeros((2, 4)), ["a", "b"]), context(FixedJudge(NLL, TOKENS)))
    assert list(scores.values) == [column.name for column in metric.columns]
    assert scores.values["gen_ppl"][0] == pytest.approx(math.exp(14 / 6))
    assert "resamples" in metric.identity() and "sum NLL" in metric.identity()


def test_nats_per_character_by_hand():
    metric, samples = (
        GenerativePerplexity(GenerativePerplexityOptions(resamples=10)),
        Samples(np.zeros((3, 4)), list("abc")),
    )
    judge = FixedJudge([2.0, 12.0, 0.0], [2, 4, 0], [5, 9, 30])
    value, error = metric.score(samples, context(judge)).values["gen_nats_per_char"]
    assert value == 1.0 and error > 0, "a text without a scored token counts no characters"
    scores = metric.score(samples, context(FixedJudge([2.0, 12.0, 0.0], [2, 4, 0])))
    assert scores.values["gen_nats_per_char"][0] == 7.0 and scores.per_sequence["gen_chars"].tolist() == [1, 1, 0]


def test_text_that_falls_apart_is_cheap_a_token_and_dear_a_character():
    """The order that a judge with merges gives, from its own counts: 64 characters in 16 tokens, and in 40."""
    metric, samples = GenerativePerplexity(GenerativePerplexityOptions(resamples=10)), Samples(np.zeros((1, 64)), ["a"])
    text, garbage = (
        metric.score(samples, context(FixedJudge([nll], [tokens], [64]))).values
        for nll, tokens in ((96.0, 16), (200.0, 40))
    )
    assert garbage["gen_ppl"][0] < text["gen_ppl"][0]
    assert garbage["gen_nats_per_char"][0] > text["gen_nats_per_char"][0] == 1.5


def test_the_headline_is_per_character_where_the_judge_has_merges():
    metric = GenerativePerplexity(GenerativePerplexityOptions())
    for merges, first in ((False, "gen_ppl"), (True, "gen_nats_per_char")):
        columns = metric.columns_for(None, FixedJudge([1], [1], merges=merges))
        assert [c.name for c in columns if c.headline and not c.aside] == [first]
        assert tradeoff(columns) is None and [c.name for c in columns if c.tradeoff == "quality"] == [first]
        assert {c.name for c in columns} == {c.name for c in metric.columns}


def test_bootstrap_se_of_a_mean_is_the_analytic_one():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=800)
    mean, se = bootstrap_mean(values, resamples=4000, seed=1)
    assert mean == pytest.approx(values.mean())
    assert se == pytest.approx(values.std() / math.sqrt(800), rel=0.05)


def test_bootstrap_se_of_pooled_perplexity_is_the_delta_methods():
    rng = np.random.default_rng(2)
    tokens = rng.integers(20, 80, size=1000)
    nll = tokens * rng.normal(3.0, 0.4, size=1000)
    _, se = bootstrap(perplexity_terms(nll, tokens), pooled_of_sums, resamples=3000, seed=0)
    rate = nll.sum() / tokens.sum()
    delta = math.exp(rate) * np.std(nll - rate * tokens) / (math.sqrt(1000) * tokens.mean())
    assert se == pytest.approx(delta, rel=0.06)


def test_bootstrap_repeats_by_seed_and_draws_the_same_rows_for_any_number_of_columns():
    values = np.random.default_rng(1).normal(size=(50, 2))
    both = resampled_sums(values, 20, seed=4)
    assert np.array_equal(both, resampled_sums(values, 20, seed=4))
    assert not np.array_equal(both, resampled_sums(values, 20, seed=5))
    assert np.array_equal(both[:, :1], resampled_sums(values[:, :1], 20, seed=4))


def test_one_sequence_has_no_standard_error():
    mean, se = bootstrap_mean(np.array([3.0]))
    assert mean == 3.0 and math.isnan(se)
