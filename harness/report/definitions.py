"""What each score means, in a sentence for the report, so that a number is never read without its definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.metrics.base import Column

_KNOWN = {
    "gen_ppl": "exp(sum of NLL / sum of tokens), pooled over all samples: samples are decoded, tokenised again with "
    "the judge's tokenizer and scored by the judge; position 0 is not scored without a BOS, nor what follows the first "
    "end-of-text. Repetitive text lowers it, so it is read together with the entropy.",
    "entropy": "of each sequence, over the generator's token ids: -sum p ln p of the unigram histogram, in nats; then "
    "the mean over sequences. The data's own value is the aim.",
    "mauve": "area under the divergence curve between features of samples and of held-out data (Pillutla et al. 2021), "
    "with the same featuriser, n and lengths on both sides; mean and standard error over k-means seeds. The row of "
    "held-out data compares human text with other human text and is the ceiling, which is below 1.",
    "nelbo_nats_per_token": "upper bound on -ln p(x) of held-out sequences per token, all latent terms included; "
    "exact for methods that have a likelihood. Only methods that have one are shown.",
}
_BETTER = {"lower": "Lower is better.", "higher": "Higher is better.", "data": "The data's own value is the aim."}
BUDGETS = (
    "**NFE**: calls of a network while sampling one sequence, all of them, counted at the call itself. "
    "**Equivalent NFE**: FLOPs spent in sampling over FLOPs of one call of the baseline's network at the same length. "
    "**Seconds per sequence**: wall clock of sampling on the device named below, over the number of sequences."
)


def definitions(columns: Sequence[Column], given: Mapping[str, str] | None = None) -> list[str]:
    """One Markdown line per column; `given` overrides or adds sentences by column name."""
    sentences = {**_KNOWN, **(given or {})}
    lines = []
    for column in columns:
        unit = f" ({column.unit})" if column.unit else ""
        sentence = sentences.get(column.name, f"column `{column.name}` of the results. {_BETTER[column.better]}")
        lines.append(f"- **{column.title}**{unit}: {sentence}")
    return lines
