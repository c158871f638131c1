"""What every metric of `studies/metric` offers: a new YAML is picked up here and nowhere else needs to know of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.config.registry import build_options
from harness.judges.base import Judge, TextScores
from harness.metrics.base import Column, Metric, Samples, ScoreContext, columns_of
from tests.kit.toys_exact import data_of, decode, table_task

FILES = sorted((Path(__file__).parents[2] / "studies" / "metric").glob("*.yaml"))
N, LENGTH = 64, 4


def build(path: Path, **options) -> Metric:
    cls, made = build_options(yaml.safe_load(path.read_text()) | options)
    return cls(made)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def metric(request) -> Metric:
    if request.param.stem == "mauve":
        pytest.importorskip("mauve")
    return build(request.param)


class TinyJudge(Judge):
    """Likelihoods, features and classes that depend on the text alone."""

    identity, heldout_ppl = "tiny", 3.0

    def prepare(self, data, cache, device, progress) -> None:
        pass

    def score(self, texts) -> TextScores:
        return TextScores(np.array([1.0 + sum(map(ord, t)) % 7 for t in texts]), np.array([len(t) for t in texts]))

    def features(self, texts) -> np.ndarray:
        return np.array([[ord(c) for c in text] for text in texts], dtype=np.float32)

    def class_probabilities(self, texts) -> np.ndarray:
        weights = 1.0 + self.features(texts) % 5
        return weights / weights.sum(axis=1, keepdims=True)


def drawn(seed: int) -> Samples:
    x_NL = TASK.sample(N, np.random.default_rng(seed))
    return Samples(x_NL, [decode(row) for row in x_NL])


TASK = table_task(2, LENGTH)


def context(cache: Path, seed: int = 0) -> ScoreContext:
    return ScoreContext(data_of(TASK), drawn(100), TinyJudge(None), cache, seed)


def test_there_are_metrics_and_no_column_is_of_two_of_them():
    assert len(FILES) >= 9
    names = [column.name for column in columns_of([build(path) for path in FILES])]
    assert len(set(names)) == len(names) and not {f"{name}_se" for name in names} & set(names)


def test_it_says_what_its_numbers_are(metric):
    assert metric.columns and metric.definition and metric.version
    assert dataclasses.is_dataclass(type(metric).Options)
    for column in metric.columns:
        assert isinstance(column, Column) and column.name.isidentifier() and column.name == column.name.lower()
        assert column.title and column.better in ("lower", "higher", "data")
        assert column.tradeoff in ("", "quality", "diversity") and not column.meaning.endswith(".")
        if column.tradeoff == "quality":
            assert column.better == "lower", "it is drawn with better downwards"
    assert {c.meaning.startswith(metric.definition) for c in columns_of([metric])} == {True}


def test_units_are_named(metric):
    """A column without a unit is a plain number: of a distance between features, or a share that its title names."""
    bare = [column.name for column in metric.columns if not column.unit]
    assert len(bare) <= 2 and all("accuracy" in c.title or "distance" in c.title for c in metric.columns if not c.unit)


def test_tiny_samples_have_finite_scores_with_errors(metric, tmp_path):
    scores = metric.score(drawn(1), context(tmp_path))
    assert list(scores.values) == [column.name for column in metric.columns]
    assert all(math.isfinite(value) for value, _ in scores.values.values())
    errors = {name: error for name, (_, error) in scores.values.items() if not math.isnan(error)}
    assert metric.columns[0].name in errors and all(0 <= error < math.inf for error in errors.values())
    assert all(len(values_N) == N for values_N in scores.per_sequence.values())


def test_equal_seeds_give_equal_scores_and_the_samples_stay_as_they_are(metric, tmp_path):
    samples = drawn(1)
    first, again = (metric.score(samples, context(tmp_path / str(k))) for k in range(2))
    assert repr(first.values) == repr(again.values)
    assert np.array_equal(samples.x_NL, drawn(1).x_NL)
    other = metric.score(drawn(2), context(tmp_path / "0"))
    assert repr(other.values) != repr(first.values), "it looks at the samples"


def test_identity_changes_with_version_and_options(metric):
    same = type(metric)(metric.options)
    assert same.identity() == metric.identity()
    same.version = "another"
    assert same.identity() != metric.identity()
    for field in dataclasses.fields(metric.options):
        assert f'"{field.name}"' in metric.identity()
