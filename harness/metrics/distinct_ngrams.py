"""How many n-grams of all samples are different (Li et al. 2016, arXiv 1510.03055): few where they repeat each other.

Shapes: N sequences, L tokens, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.config.fields import ranged
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import jackknife_error
from harness.metrics.ngrams import hashes


@dataclass
class DistinctNGramsOptions:
    """The key `metrics.distinct_ngrams.n`."""

    n: int = ranged(4, 1)  # tokens of a window


def distinct_share(hash_NW: np.ndarray) -> tuple[float, float]:
    """Number of different hashes over that of all, and its standard error by the jackknife over sequences.

    Without a sequence those are gone that occur in no other.
    """
    n, windows = hash_NW.shape
    of_kind, number = np.unique(hash_NW, return_inverse=True)[1].reshape(n, windows), n * windows
    first = np.sort(of_kind, axis=1)
    is_first = np.ones_like(first, dtype=bool)
    is_first[:, 1:] = first[:, 1:] != first[:, :-1]
    holders = np.bincount(first[is_first])  # sequences that hold each kind
    own_N = ((holders[first] == 1) & is_first).sum(1)
    kinds = len(holders)
    if n < 2:
        return kinds / number, float("nan")
    return kinds / number, jackknife_error((kinds - own_N) / (number - windows))


class DistinctNGrams(Metric):
    """The unigram entropy of 27 symbols hardly tells text from letters drawn alone; this does, and sees repeated samples."""

    Options = DistinctNGramsOptions
    definition = (
        "number of different windows of n tokens over the number of windows, in all samples together; it depends on how many "
        "samples there are"
    )

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]  # the title names n
        return (Column("distinct_ngrams", f"Distinct {self.options.n}-grams", "share", "data", aside=True),)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """See `distinct_share`; n is at most a sample's length."""
        width = min(self.options.n, samples.x_NL.shape[1])
        return Scores({"distinct_ngrams": distinct_share(hashes(samples.x_NL, width))})
