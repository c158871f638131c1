"""Ranges and choices that stand beside fields: they are heeded wherever options are built, in one line of one form."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness.config.fields import Range, check_fields, chosen, ranged, rule_of
from harness.config.registry import build_options
from harness.errors import UserError


@dataclass
class Inner:
    high: float | None = ranged(None, 0, 1)


@dataclass
class Toy:
    count: int = ranged(4, 1, 9)
    share: float = ranged(0.5, 0, 1, above=True, below=True)
    rate: float = ranged(0.1, 0, above=True, unit="minutes")
    stride: int = ranged(0, 2, also=(0,))
    level: float = ranged(1.0, high=2)
    word: str = chosen("linear", ("linear", "cosine"))
    budgets: list[int] = ranged([2, 4], 1, filled=True, distinct=True)
    words: list[str] = chosen([], ("linear", "cosine"))
    by_name: dict[str, list[int]] = ranged({}, 1)
    inner: Inner = field(default_factory=Inner)
    inners: dict[str, Inner] = field(default_factory=dict)
    free: list[Any] = field(default_factory=list)


REFUSED = [
    ({"count": 0}, "toy.count=0: must be between 1 and 9; the nearest is 1"),
    ({"count": 99}, "toy.count=99: must be between 1 and 9; the nearest is 9"),
    ({"share": 1.0}, "toy.share=1.0: must be above 0 and below 1; the default is 0.5"),
    ({"share": math.nan}, "toy.share=nan: must be finite, and above 0 and below 1; the default is 0.5"),
    ({"rate": math.inf}, "toy.rate=inf: must be finite, and above 0 minutes; the default is 0.1"),
    ({"stride": 1}, "toy.stride=1: must be 2 or more, or 0; the nearest is 2"),
    ({"level": 2.5}, "toy.level=2.5: must be at most 2; the nearest is 2"),
    ({"word": "cosin"}, "toy.word=cosin: is unknown; did you mean 'cosine'?"),
    ({"word": "x"}, "toy.word=x: is unknown; choose one of cosine, linear"),
    ({"budgets": []}, "toy.budgets=[]: must have one value at least"),
    ({"budgets": [2, 2]}, "toy.budgets=[2, 2]: names a value twice"),
    ({"budgets": [2, 0]}, "toy.budgets=0: must be 1 or more; the nearest is 1"),
    ({"words": ["linaer"]}, "toy.words=linaer: is unknown; did you mean 'linear'?"),
    ({"by_name": {"a": [0]}}, "toy.by_name.a=0: must be 1 or more; the nearest is 1"),
    ({"inner": {"high": 3.0}}, "toy.inner.high=3.0: must be between 0 and 1; the nearest is 1"),
    ({"inners": {"a": {"high": -3.0}}}, "toy.inners.a.high=-3.0: must be between 0 and 1; the nearest is 0"),
]


def _through_omegaconf(values: dict[str, Any]) -> Toy:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Toy), values))


@pytest.mark.parametrize(("values", "line"), REFUSED, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_one_form_of_refusal(values, line):
    with pytest.raises(UserError) as caught:
        check_fields(_through_omegaconf(values), "toy")
    assert str(caught.value) == line


def test_what_is_inside_passes_and_structured_configurations_keep_the_declarations():
    toy = _through_omegaconf({"stride": 0, "inner": {"high": 0.5}, "by_name": {"a": [1]}, "free": ["x", None, 1]})
    check_fields(toy)
    assert isinstance(toy, Toy) and toy.budgets == [2, 4]
    rules = {f.name: str(rule_of(f)) for f in dataclasses.fields(toy)}
    assert rules["count"] == "between 1 and 9" and rules["word"] == "one of 'linear', 'cosine'"
    assert rules["free"] == "None"
    assert Toy().budgets is not Toy().budgets
    Range(0, also=(math.inf,)).check("clip", math.inf)


TARGETS = {
    "mauve": "harness.metrics.mauve.Mauve",
    "diversity": "harness.metrics.diversity.Diversity",
    "variation": "harness.metrics.variation.Variation",
    "frechet": "harness.metrics.frechet.Frechet",
    "class_entropy": "harness.metrics.class_entropy.ClassEntropy",
    "gen_ppl": "harness.metrics.perplexity.GenerativePerplexity",
    "digits_judge": "harness.judges.digits.DigitsJudge",
    "trained": "harness.judges.trained.TrainedJudge",
    "pretrained": "harness.judges.pretrained.PretrainedJudge",
    "digits": "harness.data.digits.Digits",
    "docstrings": "harness.data.docstrings.Docstrings",
    "hub": "harness.data.hub.Hub",
    "text": "harness.data.text.Text",
    "bpe": "harness.data.bpe.ByteBPE",
    "characters": "harness.data.chars.Characters",
    "tokenizer": "harness.data.pretrained.Pretrained",
    "binsaw": "harness.tasks.binsaw.BinsawData",
    "hmm": "harness.tasks.hmm.HMMData",
    "templates": "harness.tasks.templates.TemplatesData",
}
OPTIONS = [
    ("mauve", {"seeds": 4}, "5"),
    ("mauve", {"buckets": 1}, "2"),
    ("mauve", {"scaling": 0.0}, "5"),
    ("mauve", {"explained_variance": 1.0}, "0.9"),
    ("mauve", {"redo": 0}, "1"),
    ("diversity", {"pairs": 1}, "2"),
    ("diversity", {"directions": 0}, "1"),
    ("diversity", {"resamples": 1}, "2"),
    ("variation", {"draws": 1}, "2"),
    ("variation", {"resamples": 0}, "2"),
    ("frechet", {"resamples": 1}, "2"),
    ("class_entropy", {"resamples": 1}, "2"),
    ("gen_ppl", {"resamples": 1}, "2"),
    ("digits_judge", {"features": 0}, "1"),
    ("digits_judge", {"lr": 0.0}, "0.003"),
    ("digits_judge", {"seed": -1}, "0"),
    ("digits_judge", {"dropout": 1.0}, "0.3"),
    ("digits_judge", {"noise": -0.1}, "0"),
    ("trained", {"vocab": 256}, "257"),
    ("trained", {"steps": 0}, "1"),
    ("trained", {"precision": "float16"}, "'bfloat16'?"),
    ("trained", {"lr": 0.0}, "0.003"),
    ("trained", {"context": 1}, "2"),
    ("trained", {"pool": "first"}, "choose one of last, mean"),
    ("pretrained", {"dtype": "float23"}, "'float32'?"),
    ("pretrained", {"bos": "eso"}, "'eos'?"),
    ("pretrained", {"pool": "men"}, "'mean'?"),
    ("pretrained", {"heldout_rows": 0}, "1"),
    ("digits", {"levels": 1}, "2"),
    ("digits", {"levels": 18}, "17"),
    ("digits", {"levels": -3}, "2"),
    ("docstrings", {"valid_fraction": 0.0}, "0.025"),
    ("hub", {"repo": "a/b", "max_documents": 0}, "1"),
    ("hub", {"repo": "a/b", "test_fraction": 0.0}, "0.01"),
    ("text", {"path": "a", "valid_fraction": 0.0}, "0.05"),
    ("text", {"path": "a", "test_fraction": 1.5}, "0.05"),
    ("text", {"path": "a", "valid_fraction": -0.1}, "0.05"),
    ("text", {"path": "a", "documents": "line"}, "'lines'?"),
    ("bpe", {"vocab_size": 255}, "256"),
    ("bpe", {"train_megabytes": 0.0}, "10"),
    ("characters", {"alphabet": "text9"}, "'text8'?"),
    ("tokenizer", {"separator": "newlin"}, "'newline'?"),
    ("binsaw", {"train": 0}, "1"),
    ("binsaw", {"heldout": -1}, "1"),
    ("binsaw", {"seed": -1}, "0"),
    ("hmm", {"states": 1}, "2"),
    ("hmm", {"symbols": 1}, "2"),
    ("hmm", {"stay": 1.5}, "1"),
    ("hmm", {"purity": -0.1}, "0"),
    ("hmm", {"stay": math.nan}, "0.9"),
    ("templates", {"classes": 0}, "1"),
    ("templates", {"classes": 5000}, "4096"),
    ("templates", {"symbols": 1}, "2"),
    ("templates", {"symbols": 300}, "256"),
    ("templates", {"accuracy": 2.0}, "1"),
    ("templates", {"task_seed": -2}, "0"),
]


@pytest.mark.parametrize(("name", "values", "way_out"), OPTIONS, ids=str)
def test_options_out_of_their_range_are_refused_with_the_nearest(name, values, way_out):
    key, value = list(values.items())[-1]
    with pytest.raises(UserError) as caught:
        build_options({"_target_": TARGETS[name], **values}, "place")
    line = str(caught.value)
    assert line.startswith(f"place.{key}={value}: ") and line.endswith(way_out) and "\n" not in line
