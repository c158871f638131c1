"""Exact tasks as data: splits, fingerprints, text, facts, and refusals in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from harness.config.registry import build_options
from harness.data.base import SPLITS
from harness.errors import UserError
from harness.tasks.binsaw import BinsawData
from harness.tasks.hmm import HMMData
from harness.tasks.permutation import PermutationData
from harness.tasks.source import TaskSource
from harness.tasks.templates import TemplatesData

SOURCES = {"binsaw": (BinsawData, 128), "hmm": (HMMData, 32), "templates": (TemplatesData, 32)}
SOURCES["permutation"] = (PermutationData, 6)
STUDIES = Path(__file__).resolve().parents[2] / "studies"


def loaded(cls: type[TaskSource], length: int, **options):
    small = {"train": 64, "heldout": 32} | options
    return cls(cls.Options(**small)).load(length, None, None)


@pytest.mark.parametrize("name", SOURCES)
def test_the_yaml_gives_the_source(name, tmp_path):
    cls, length = SOURCES[name]
    content = yaml.safe_load((STUDIES / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    found, options = build_options(content | {"train": 100, "heldout": 10, "seed": 3})
    assert found is cls
    data = found(options).load(length, tmp_path, tokenizer=None)
    assert data.name == data.task.name == name and data.length == data.task.length == length
    assert [data.splits[split].shape for split in SPLITS] == [(100, length), (10, length), (10, length)]
    assert data.vocab_size == data.task.vocab_size and data.splits["train"].dtype == np.uint8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SOURCES)
def test_default_rows_are_of_the_stated_number(name):
    cls, length = SOURCES[name]
    data = cls(cls.Options()).load(length, None, None)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 65536, "valid": 8192, "test": 8192}


def test_options_of_the_task_change_it():
    base = HMMData.Options(train=8, heldout=8)
    prints = {HMMData(replace(base, **o)).load(8, None, None).fingerprint for o in ({}, {"stay": 0.8}, {"purity": 0.9})}
    assert len(prints) == 3
    data = loaded(HMMData, 8, states=4, symbols=8, stay=0.5, purity=0.7)
    task = data.task
    assert (task.states, task.vocab_size, task.stay, task.purity) == (4, 8, 0.5, 0.7)
    seeds = [loaded(TemplatesData, 8, task_seed=0, seed=s).task.template_CL for s in (0, 1)]
    assert np.array_equal(*seeds)
    assert not np.array_equal(seeds[0], loaded(TemplatesData, 8, task_seed=1).task.template_CL)
    task = loaded(TemplatesData, 8, classes=3, symbols=5, accuracy=0.5).task
    assert (task.template_CL.shape, task.vocab_size, task.accuracy) == ((3, 8), 5, 0.5)


def test_ids_as_text():
    assert loaded(TemplatesData, 3, symbols=36).decode([0, 10, 35]) == "0az"
    assert loaded(TemplatesData, 3, symbols=37).decode(np.array([0, 10, 36])) == "0 10 36"


@pytest.mark.parametrize("name", SOURCES)
def test_facts_are_the_exact_numbers(name):
    cls, length = SOURCES[name]
    data = loaded(cls, length)
    exact = data.task.exact
    assert data.facts["entropy_nats"] == exact.entropy and data.facts["exact_error_nats"] == exact.error
    assert data.facts["total_correlation_nats"] == exact.total_correlation
    assert data.facts.get("latent_information_nats") == exact.latent_information
    assert data.facts["vocab_size"] == data.vocab_size and data.facts["rows_train"] == 64
    assert all(type(value) in (str, int, float) for value in data.facts.values())
    test_NL = torch.from_numpy(data.splits["test"])
    assert torch.isfinite(data.task.log_prob(test_NL)).all()


def test_permutations_say_how_many_one_step_gets_right():
    assert loaded(PermutationData, 4).facts["one_step_validity"] == pytest.approx(24 / 256)


@pytest.mark.parametrize(
    ("cls", "length", "options", "expected"),
    [
        (BinsawData, 0, {}, "scale.length=0: .* nearest is 1"),
        (BinsawData, 513, {}, "scale.length=513: .* nearest is 512"),
        (HMMData, 8, {"symbols": 2}, "data.symbols=2 .* use 3"),
        (HMMData, 8, {"symbols": 8}, "data.symbols=8 cannot be shared out among 3 states; use 9"),
        (HMMData, 8, {"symbols": 256}, "data.symbols=256 cannot .* use 255"),
        (PermutationData, 1, {}, "scale.length=1: .* nearest is 2"),
        (PermutationData, 21, {}, "scale.length=21: .* nearest is 20"),
    ],
)
def test_refusals_name_value_and_remedy(cls, length, options, expected):
    with pytest.raises(UserError, match=expected) as caught:
        loaded(cls, length, **options)
    assert "\n" not in str(caught.value)
