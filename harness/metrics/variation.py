"""Total variation between the samples' empirical law and the data's own, where all possible sequences can be listed.

Shapes: N sequences, L tokens, C sequences of the support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.tasks.base import require_task

_SEED = 20_250_402


def support_counts(x_NL: np.ndarray, support_CL: np.ndarray) -> np.ndarray:
    """How often each sequence of the support is among the samples, and last how many samples are none of them, (C + 1,)."""
    place = {row.tobytes(): c for c, row in enumerate(np.ascontiguousarray(support_CL, dtype=np.int64))}
    rows = np.ascontiguousarray(x_NL, dtype=np.int64)
    found_N = [place.get(row.tobytes(), len(place)) for row in rows]
    return np.bincount(found_N, minlength=len(place) + 1)


def total_variation(counts: np.ndarray, p: np.ndarray) -> np.ndarray:
    """`1/2 sum |counts / n - p|` over the last axis: 0 for the same law, 1 for laws that share nothing."""
    return 0.5 * np.abs(counts / counts.sum(axis=-1, keepdims=True) - p).sum(axis=-1)


@dataclass
class VariationOptions:
    """How finely both values are estimated."""

    draws: int = ranged(20, 2)  # of n true sequences, which give the value of data
    resamples: int = ranged(200, 2)  # of the standard error


class Variation(Metric):
    """The plug-in estimate is biased upward: n draws of the truth are at `total_variation_data`, not at 0."""

    Options = VariationOptions
    version = "1"
    definition = (
        "half the sum over all sequences of |share among the samples - p(x)|, where p(x) > 0 for at most 4096 of them "
        "(samples with p(x) = 0 count in full; not defined elsewhere), standard error by bootstrap over sequences; and "
        "the mean of the same figure for n draws from p"
    )
    columns = (
        Column("total_variation", "Total variation", "0 to 1", "data", headline=False),
        Column("total_variation_data", "Total variation of as many true draws", "0 to 1", "data", headline=False),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` where the data's law is not known."""
        require_task(data.task, "metric=variation")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """Both columns; NaN where the support is too large to be listed."""
        task = require_task(context.data.task, "metric=variation")
        support_CL = task.support()
        if support_CL is None:
            return Scores({column.name: (math.nan, math.nan) for column in self.columns})
        p_C = np.append(task.log_prob(torch.as_tensor(support_CL)).exp().numpy(), 0.0)
        p_C /= p_C.sum()  # it sums to 1 up to rounding, and the multinomial asks for no more than 1
        counts_C, n = support_counts(samples.x_NL, support_CL.numpy()), len(samples.x_NL)
        resampled_R = np.random.default_rng(context.seed).multinomial(n, counts_C / n, self.options.resamples)
        error = float(total_variation(resampled_R, p_C).std(ddof=1))
        true_R = total_variation(np.random.default_rng(_SEED).multinomial(n, p_C, self.options.draws), p_C)
        of_data = float(true_R.mean()), float(true_R.std(ddof=1) / math.sqrt(len(true_R)))
        return Scores(
            {"total_variation": (float(total_variation(counts_C, p_C)), error), "total_variation_data": of_data}
        )
