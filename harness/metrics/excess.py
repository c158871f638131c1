"""Excess nats: how much less likely samples are under the data's own law than data are.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from harness.config.fields import NoOptions
from harness.data.base import TokenData
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import mean_and_error
from harness.tasks.base import require_task


class Excess(Metric):
    """`E_q[-log p(x)] - H = KL(q || p) + H(q) - H(p)`: lost diversity lowers it, so it is read beside `diversity`."""

    Options = NoOptions
    version = "2"
    definition = (
        "mean of -log p(x) over the samples minus the entropy of the data's own law p, nats per sequence; standard "
        "error over sequences (an error of the entropy itself, which all rows share, is among the data's facts); infinite "
        "where a sample has p(x) = 0, the share of which is 1 - validity; excess_valid_nats leaves those samples out"
    )
    columns = (
        Column("excess_nats", "Excess", "nats", "lower"),
        Column("validity", "Validity", "share with p(x) > 0", "higher"),
        Column("excess_valid_nats", "Excess of valid samples", "nats", "lower", headline=False),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` where the data's law is not known."""
        require_task(data.task, "metric=excess")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        """The three columns; `per_sequence` keeps -log p(x) in nats, infinity where p(x) = 0."""
        task = require_task(context.data.task, "metric=excess")
        x_NL = torch.from_numpy(np.asarray(samples.x_NL, dtype=np.int64))
        nll_N = -task.log_prob(x_NL).numpy()
        valid_N = np.isfinite(nll_N)
        entropy, share, n = task.exact.entropy, float(valid_N.mean()), len(valid_N)
        error = math.sqrt(share * (1.0 - share) / n)
        values = {
            "excess_nats": mean_and_error(nll_N - entropy),
            "validity": (share, error),
            "excess_valid_nats": mean_and_error(nll_N[valid_N] - entropy),
        }
        return Scores(values, {"exact_nll": nll_N})
