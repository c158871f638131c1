"""Share of the samples' words that are words of held-out text: what says how much of a sample is spelt right.

Shapes: N texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from harness.config.fields import NoOptions
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import bootstrap

_WORD = re.compile(r"\w+")
_RESAMPLES = 1000


def whole_words(text: str) -> Iterator[str]:
    """Runs of letters and digits, in small letters; a run at one edge of the text is cut off there and is left out."""
    for found in _WORD.finditer(text):
        if (found.start() == 0) == (found.end() == len(text)):  # inside, or all of the text
            yield found[0].lower()


class Words(Metric):
    """Known words among the samples' own; rare names keep text itself below 1."""

    Options = NoOptions
    definition = (
        "share of the words of all samples that occur in the reference set, n held-out sequences; words cut off by an edge of "
        "a sequence are left out; standard error by bootstrap over sequences"
    )
    columns = (Column("known_words", "Known words", "share", "data", aside=True),)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """NaN where the samples have no whole word."""
        known = {word for text in context.reference.texts for word in whole_words(text)}
        found = [list(whole_words(text)) for text in samples.texts]
        terms_N2 = np.array([[sum(word in known for word in words), len(words)] for words in found], dtype=float)
        share = bootstrap(terms_N2, lambda sums: sums[..., 0] / sums[..., 1], _RESAMPLES, context.seed)
        return Scores({"known_words": share})
