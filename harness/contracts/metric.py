"""What a metric owes the harness: what its columns mean, finite scores with errors, an identity.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness.contracts.world import Check, decode, must
from harness.data.base import TokenData
from harness.judges.base import Judge, TextScores
from harness.metrics.base import Metric, Prompts, Samples, ScoreContext, Scores, columns_of
from harness.tasks.templates import Templates

Build = Callable[[int], Metric]
N, LENGTH = 64, 4
TASK = Templates(LENGTH, classes=3, symbols=3, accuracy=0.6)


class TinyJudge(Judge):
    """Likelihoods, features and classes that depend on the text alone."""

    classifies = True
    identity, heldout_ppl = "tiny", 3.0

    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        pass

    def score(self, texts: Sequence[str]) -> TextScores:
        return TextScores(np.array([1.0 + sum(map(ord, t)) % 7 for t in texts]), np.array([len(t) for t in texts]))

    def features(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[ord(c) for c in text] for text in texts], dtype=np.float32)

    def class_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        weights = 1.0 + self.features(texts) % 5
        return weights / weights.sum(axis=1, keepdims=True)


def drawn(seed: int) -> Samples:
    """N samples of a known law."""
    x_NL = TASK.sample(N, np.random.default_rng(seed))
    return Samples(x_NL, [decode(row) for row in x_NL])


def scored(metric: Metric, samples: Samples) -> Scores:
    """Scores with a cache of its own."""
    splits = {name: drawn(k).x_NL for k, name in enumerate(("train", "valid", "test"))}
    data = TokenData("toy", TASK.vocab_size, LENGTH, splits, "fingerprint-of-toy", decode, task=TASK)
    with tempfile.TemporaryDirectory() as cache:
        given = drawn(200)
        prompts = Prompts(given.texts, given.x_NL, np.arange(LENGTH) % 2 == np.zeros((N, 1)))
        return metric.score(samples, ScoreContext(data, drawn(100), TinyJudge(None), Path(cache), 0, prompts))


def columns(build: Build) -> None:
    """it says what its numbers are"""
    metric = build(0)
    kind = type(metric).__name__
    must(metric.columns and metric.definition and metric.version, f"{kind} lacks columns, definition or version")
    must(dataclasses.is_dataclass(type(metric).Options), f"{kind}.Options is no dataclass")
    names = [column.name for column in metric.columns]
    must(len({*names, *(f"{name}_se" for name in names)}) == 2 * len(names), "two columns have one name")
    for c in metric.columns:
        must(
            c.name.isidentifier() and c.name == c.name.lower(), f"column '{c.name}': write small letters, digits and _"
        )
        must(c.title, f"column {c.name} has no title")
        must(c.better in ("lower", "higher", "data"), f"column {c.name}: better={c.better!r}; lower, higher or data")
        must(c.tradeoff in ("", "quality", "diversity"), f"column {c.name}: tradeoff={c.tradeoff!r} is unknown")
        must(c.tradeoff != "quality" or c.better == "lower", f"column {c.name}: quality is drawn with better downwards")
        must(
            not c.meaning.endswith("."), f"column {c.name}: the meaning ends with a full stop, which is put there later"
        )
    meanings = [column.meaning for column in columns_of([metric])]
    must(all(m.startswith(metric.definition) for m in meanings), "the definition is not in the columns' meanings")


def scores(build: Build) -> None:
    """samples of a known law have finite scores with errors"""
    metric = build(0)
    found = scored(metric, drawn(1))
    names = [column.name for column in metric.columns]
    must(list(found.values) == names, f"it scores {', '.join(found.values)}; its columns are {', '.join(names)}")
    for name, (value, error) in found.values.items():
        must(math.isfinite(value), f"{name} is {value}")
        must(math.isnan(error) or 0 <= error < math.inf, f"the standard error of {name} is {error}")
    must(not math.isnan(found.values[names[0]][1]), f"{names[0]}, the first column, has no standard error")
    for name, values_N in found.per_sequence.items():
        must(len(values_N) == N, f"{name} of each sequence has {len(values_N)} values for {N} sequences")


def repeatable(build: Build) -> None:
    """scores depend on samples and seed alone"""
    metric, samples = build(0), drawn(1)
    first, again, other = (scored(metric, s).values for s in (samples, samples, drawn(2)))
    must(repr(first) == repr(again), "scored twice, the same samples have two scores; take chance from context.seed")
    must(np.array_equal(samples.x_NL, drawn(1).x_NL), "it changes the samples")
    must(repr(other) != repr(first), "other samples have the same scores")


def identity(build: Build) -> None:
    """its identity holds version and options"""
    metric = build(0)
    same = type(metric)(metric.options)
    must(same.identity() == metric.identity(), "the identity of equal options differs")
    same.version = f"{metric.version}, another"
    must(same.identity() != metric.identity(), "the identity does not change with the version")
    for field in dataclasses.fields(metric.options):
        must(f'"{field.name}"' in metric.identity(), f"the option {field.name} is not in the identity")


CHECKS: tuple[Check, ...] = (columns, scores, repeatable, identity)
