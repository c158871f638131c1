"""What was filled in beside given tokens: how likely the judge finds it, and whether it is what stood there.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

from harness.config.fields import NoOptions
from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores
from harness.metrics.bootstrap import mean_and_error


class Infill(Metric):
    """Texts with the same given tokens differ in -log p(all) as in -log p(filled in | given): a judge of texts is enough."""

    Options = NoOptions
    prompted = True
    definition = (
        "samples fill in what is hidden of held-out texts; standard errors over sequences. fill_nats: the judge's -log p of "
        "the filled text minus that of the held-out one, per hidden token, which is the difference of their conditional "
        "-log p given what is shown; 0 in the mean for who draws from the judge's conditional law of the text, where the "
        "judge is the law of the data"
    )
    columns = (
        Column("fill_nats", "Nats above the text's own", "per hidden token", "data"),
        Column("fill_matches", "Hidden tokens found", "share", "higher"),
        Column("fill_exact", "All hidden tokens found", "share of samples", "higher", aside=True),
    )

    def check(self, data: TokenData, judge: Judge) -> None:
        """Raise `UserError` where the judge says nothing of how likely a text is."""
        if not judge.has_likelihood:
            raise UserError("metric=infill needs a judge that says how likely a text is; use judge=trained")

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        given, judge = context.prompts, context.judge
        if given is None:
            raise UserError("metric=infill scores what was filled in; use study.prompt=half or prefix")
        filled, own = (judge.score(judge.read_of(texts)).nll_N for texts in (samples.texts, given.texts))
        hidden_N = given.hidden_NL.sum(1)
        found_N = ((samples.x_NL == given.x_NL) & given.hidden_NL).sum(1)
        nats_N, exact_N = (filled - own) / hidden_N[: len(own)], (found_N == hidden_N).astype(float)
        values = {
            "fill_nats": mean_and_error(nats_N),
            "fill_matches": mean_and_error(found_N / hidden_N),
            "fill_exact": mean_and_error(exact_N),
        }
        return Scores(values, {"fill_nats": nats_N, "fill_matches": found_N / hidden_N})
