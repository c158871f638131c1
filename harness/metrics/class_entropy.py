"""Which classes samples fall into: entropy of the classifier's mean distribution, and how sure it is of each sample.

The two halves of the inception score (Salimans et al. 2016), kept apart: one is diversity over classes, the other tells
pictures of something from pictures of nothing. Both are read against held-out data and against each other: noise that the
classifier is unsure of also has a flat mean.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import bootstrap, mean_and_error


def entropy_of_sums(sums: np.ndarray) -> np.ndarray:
    """`-sum p log p` in nats of unnormalised class weights (..., C); fit for `bootstrap`."""
    p = sums / sums.sum(axis=-1, keepdims=True)
    # The inner maximum only keeps log 0 away: its factor p is 0 there.
    return 0.0 - (p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=-1)


@dataclass
class ClassEntropyOptions:
    """How finely the error is estimated."""

    resamples: int = ranged(1000, 2)  # of the bootstrap over samples, for the entropy's standard error


class ClassEntropy(Metric):
    """Diversity over classes and confidence, both with the data's own value as the aim; needs a judge that classifies."""

    Options = ClassEntropyOptions
    version = "1"
    definition = (
        "entropy in nats (log 10 at most for digits) of the judge's class distribution averaged over samples, with a "
        "bootstrap standard error; and the mean over samples of the judge's highest class probability"
    )
    columns = (
        Column("class_entropy", "Class entropy", "nats", "data"),
        Column("class_confidence", "Class confidence", "0 to 1", "data"),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` for a judge that names no classes."""
        if not judge.classifies:
            raise UserError("class_entropy needs a judge that names classes; use judge=digits or leave it out")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """Both values; `per_sequence` keeps each sample's confidence and most likely class."""
        p_NC = np.asarray(context.judge.class_probabilities(samples.texts), dtype=np.float64)
        entropy = bootstrap(p_NC, entropy_of_sums, self.options.resamples, context.seed)
        top_N = p_NC.max(axis=1)
        return Scores(
            {"class_entropy": entropy, "class_confidence": mean_and_error(top_N)},
            {"class_confidence": top_N, "class": p_NC.argmax(axis=1)},
        )
