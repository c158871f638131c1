"""How much of the samples stands word for word in the training text, and whether more so at some offsets than at others.

Neither perplexity nor MAUVE sees copying: a sampler that pastes training text scores best. Held-out text has a share too,
and that is the value to compare with. A method that works in segments has seams: n-grams across them are less familiar.

Shapes: N sequences, L tokens, W windows (offsets) of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import jackknife_error, mean_and_error
from harness.metrics.ngrams import are_in, hashes, training_hashes

_CHARACTERS, _MERGED = (8, 16, 32), (4, 8, 16)
_ONE_BYTE = 1.5  # bytes of a token below which it is a character


@dataclass
class CopiedOptions:
    """Lengths in tokens; `[]`: 8, 16, 32 where a token is a character or byte, else 4, 8, 16."""

    lengths: list[int] = field(default_factory=list)
    corpus_tokens: int = ranged(50_000_000, 1)  # of the training split, at most


def spread_over_offsets(familiar_NW: np.ndarray) -> tuple[float, float]:
    """Variance over offsets of the share of familiar n-grams, over the squared mean share, and its standard error.

    Unbiased: what the offsets of N sequences would differ by chance is taken off, so that it is 0 in the mean, and may be
    below, where no offset is special. The error is the jackknife's over sequences, 1.4 times too wide where that is so.
    """
    n, offsets = familiar_NW.shape
    if offsets < 2 or n < 3:
        return 0.0, 0.0
    mean_N = familiar_NW.mean(1)
    apart_NW = familiar_NW - mean_N[:, None]
    sum_W, square_W = apart_NW.sum(0), (apart_NW**2).sum(0)

    def relative(sums: np.ndarray, squares: np.ndarray, mean: np.ndarray, count: int) -> np.ndarray:
        centre = sums / count
        noise = (squares - count * centre**2) / (count - 1) / count
        with np.errstate(divide="ignore", invalid="ignore"):
            return (centre**2 - noise).sum(-1) / (offsets - 1) / mean**2

    whole = float(relative(sum_W, square_W, mean_N.mean(), n))
    without_N = relative(sum_W - apart_NW, square_W - apart_NW**2, (mean_N.sum() - mean_N) / (n - 1), n - 1)
    return whole, jackknife_error(without_N)


class Copied(Metric):
    """Shares of copied n-grams at three lengths, and how uneven the shortest are over offsets in the sequence."""

    Options = CopiedOptions
    definition = (
        "share of the windows of n tokens of a sample that occur in the training split (read as one stream), mean over "
        "samples; n is at most a sample's length"
    )

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]  # those of the lengths that are set
        return self._columns(tuple(self.options.lengths) or _CHARACTERS)

    def columns_for(self, data: TokenData, judge: Judge) -> tuple[Column, ...]:
        return self._columns(self._lengths(data))

    def _columns(self, lengths: tuple[int, ...]) -> tuple[Column, ...]:
        copied = [
            Column(f"copied_{n}", f"Copied {n}-grams", "share", "data", aside=True, ceiling=True, meaning=_ABOVE)
            for n in lengths
        ]
        spread = Column("seams", "Seams", "squared relative spread", "lower", aside=True, meaning=_SEAMS)
        return *copied, spread

    def _lengths(self, data: TokenData) -> tuple[int, ...]:
        by_default = _CHARACTERS if float(data.facts.get("bytes_per_token_train", 1.0)) < _ONE_BYTE else _MERGED
        return tuple(self.options.lengths) or by_default

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` for lengths that are none."""
        lengths = self._lengths(data)
        if min(lengths) < 1 or len(set(lengths)) < len(lengths):
            raise UserError(f"metrics.copied.lengths={list(lengths)}: different numbers from 1 on; use [8,16,32]")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """See `definition`; the profile has the share of samples whose shortest n-gram is familiar, at each offset."""
        values: dict[str, tuple[float, float]] = {}
        lengths, by_length = self._lengths(context.data), dict[int, np.ndarray]()
        for n in lengths:
            width = min(n, samples.x_NL.shape[1])
            known = training_hashes(context.data, width, self.options.corpus_tokens, context.cache)
            by_length[n] = are_in(hashes(samples.x_NL, width), known)
            values[f"copied_{n}"] = mean_and_error(by_length[n].mean(1))
        shortest = by_length[min(lengths)]
        values["seams"] = spread_over_offsets(shortest)
        return Scores(values, profiles={f"Familiar {min(lengths)}-grams by offset": shortest.mean(0)})


_ABOVE = "Held-out text's own share is what to compare with; ▲ marks a row above it, with 95 % intervals apart"
_SEAMS = (
    "variance over offsets in the sequence of the share of familiar shortest n-grams, over the square of its mean, with the "
    "chance of n sequences taken off: 0 where no offset is special, as in text; a method that joins segments has more"
)
