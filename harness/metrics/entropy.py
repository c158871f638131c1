"""Unigram entropy of each sample: what shows that a low generative perplexity was bought with repetition.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import numpy as np

from harness.config.fields import NoOptions
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import mean_and_error


def sequence_entropy(x_NL: np.ndarray) -> np.ndarray:
    """`-sum_v p_v log p_v` in nats for each row (N,), where `p_v` is the share of token `v` in that row.

    Rows are sorted and runs counted, so memory is N x L whatever the vocabulary.
    Raises `ValueError` for rows without tokens.
    """
    x_NL = np.asarray(x_NL)
    if x_NL.ndim != 2 or x_NL.shape[1] == 0:
        raise ValueError(f"entropy needs rows of at least one token; got shape {x_NL.shape}")
    n, length = x_NL.shape
    if n == 0:
        return np.zeros(0)
    sorted_NL = np.sort(x_NL, axis=1)
    first_NL = np.ones((n, length), dtype=bool)
    first_NL[:, 1:] = sorted_NL[:, 1:] != sorted_NL[:, :-1]
    start_M = np.flatnonzero(first_NL)  # every row starts a run, so no run crosses two rows
    count_M = np.diff(start_M, append=n * length)
    share_M = count_M / length
    entropy_N = np.bincount(start_M // length, weights=-share_M * np.log(share_M), minlength=n)
    return np.maximum(entropy_N, 0.0)  # -1 * log(1) is -0.0


class Entropy(Metric):
    """Mean over samples of the entropy of each sample's own token histogram; the data's own value is the aim."""

    Options = NoOptions
    version = "1"
    definition = (
        "mean over samples of -sum p log p (natural log) of each sample's histogram of the generator's token ids; "
        "standard error is the sample standard deviation over sqrt(n)"
    )
    columns = (Column("entropy", "Unigram entropy", "nats", "data", tradeoff="diversity"),)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """Mean and its analytic standard error; `per_sequence` keeps each sample's entropy in nats."""
        entropy_N = sequence_entropy(samples.x_NL)
        return Scores({"entropy": mean_and_error(entropy_N)}, {"entropy": entropy_N})
