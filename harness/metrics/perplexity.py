"""Generative perplexity under a judge, in its three published definitions, and nats per character.

Shapes: N sequences, K per-sequence terms. All likelihoods are in nats; tokens are the judge's, not the generator's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import bootstrap

_UNIT = "perplexity per judge token"
_MEANING = "Repetitive text lowers it, so it is read together with the entropy"


_PER_TOKEN = Column(
    "gen_ppl", "Gen. PPL", _UNIT, "lower", judged_by="gen_nats_per_char", tradeoff="quality", meaning=_MEANING
)
_PER_CHARACTER = Column(
    "gen_nats_per_char",
    "Nats/char",
    "nats per character of decoded text",
    "lower",
    aside=True,
    least_gap=0.3,
    meaning="sum NLL over the number of characters that the scored tokens spell. It compares judges with each other, and "
    "under a judge with merges it is what orders texts: text that falls apart has more and cheaper tokens",
)


def perplexity_terms(nll_N: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
    """Per-sequence terms (N, 5) whose sums give all three definitions: NLL, tokens, mean NLL, perplexity, 1[scored].

    A sequence with no scored token adds nothing to any of them; the last column is what counts it.
    """
    nll_N = np.asarray(nll_N, dtype=np.float64)
    tokens_N = np.asarray(tokens_N, dtype=np.float64)
    scored_N = tokens_N > 0
    mean_N = np.divide(nll_N, tokens_N, out=np.zeros_like(nll_N), where=scored_N)
    with np.errstate(over="ignore"):
        ppl_N = np.where(scored_N, np.exp(mean_N), 0.0)
    return np.stack([np.where(scored_N, nll_N, 0.0), tokens_N, mean_N, ppl_N, scored_N.astype(np.float64)], axis=1)


def pooled_of_sums(sums: np.ndarray) -> np.ndarray:
    """`exp(sum NLL / sum tokens)` from sums (..., 5) of `perplexity_terms`: every token weighs the same."""
    return np.exp(sums[..., 0] / sums[..., 1])


def seqmean_of_sums(sums: np.ndarray) -> np.ndarray:
    """`exp(mean over sequences of NLL_i / tokens_i)`, from the same sums: every sequence weighs the same."""
    return np.exp(sums[..., 2] / sums[..., 4])


def meanseq_of_sums(sums: np.ndarray) -> np.ndarray:
    """`mean over sequences of exp(NLL_i / tokens_i)`, from the same sums: the worst sequences weigh most."""
    return sums[..., 3] / sums[..., 4]


def per_character_of_sums(sums: np.ndarray) -> np.ndarray:
    """`sum NLL / sum characters` in nats, from sums (..., 2) of the two: every character weighs the same."""
    return sums[..., 0] / sums[..., 1]


@dataclass
class GenerativePerplexityOptions:
    """How finely errors are estimated."""

    resamples: int = ranged(1000, 2)  # of the bootstrap over sequences that gives the standard errors


class GenerativePerplexity(Metric):
    """Perplexity of decoded samples under the study's judge; needs the entropy beside it, since repetition games it."""

    Options = GenerativePerplexityOptions
    version = "2"
    definition = (
        "exp(sum NLL / sum tokens) over all samples, decoded, retokenised and scored by the judge: position 0 only "
        "with a BOS, nothing after the first end-of-text; standard errors by bootstrap over sequences"
    )
    columns = (
        _PER_TOKEN,
        _PER_CHARACTER,
        Column("gen_ppl_seqmean", "Gen. PPL (exp of mean per-sequence NLL)", _UNIT, "lower", headline=False),
        Column("gen_ppl_meanseq", "Gen. PPL (mean of per-sequence PPL)", _UNIT, "lower", headline=False),
        Column("gen_unscored", "Samples with no scored token", "share of samples", "lower", headline=False),
    )

    def columns_for(self, data: TokenData, judge: Judge) -> tuple[Column, ...]:
        """With merges the headline is nats per character, and perplexity per token stands aside."""
        if not judge.merges:
            return self.columns
        leading = dataclasses.replace(_PER_CHARACTER, aside=False, tradeoff="quality")
        return leading, dataclasses.replace(_PER_TOKEN, aside=True, tradeoff=""), *self.columns[2:]

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """All definitions; `per_sequence` keeps NLL (nats), judge tokens and characters, so that any other can be had."""
        texts = context.judge.read_of(samples.texts)
        scored = context.judge.score(texts)
        terms_NK = perplexity_terms(scored.nll_N, scored.tokens_N)
        statistics = {
            "gen_ppl": pooled_of_sums,
            "gen_ppl_seqmean": seqmean_of_sums,
            "gen_ppl_meanseq": meanseq_of_sums,
        }
        values = {
            name: bootstrap(terms_NK, statistic, self.options.resamples, context.seed)
            for name, statistic in statistics.items()
        }
        known_N = [len(text) for text in texts] if scored.chars_N is None else scored.chars_N
        chars_N = np.where(terms_NK[:, 4] > 0, known_N, 0)
        values["gen_nats_per_char"] = bootstrap(
            np.stack([terms_NK[:, 0], chars_N], axis=1), per_character_of_sums, self.options.resamples, context.seed
        )
        n = len(terms_NK)
        unscored = float(1.0 - terms_NK[:, 4].mean()) if n else float("nan")
        values["gen_unscored"] = (unscored, float(np.sqrt(unscored * (1.0 - unscored) / n)) if n > 1 else float("nan"))
        values = {column.name: values[column.name] for column in self.columns}
        return Scores(values, {"gen_nll": scored.nll_N, "gen_tokens": scored.tokens_N, "gen_chars": chars_N})
