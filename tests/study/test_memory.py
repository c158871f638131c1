"""A batch that cannot fit in memory is refused before it is tried, in a line with what fits; what fits is not."""

from __future__ import annotations

import re

import pytest

from harness.config.load import load
from harness.errors import UserError
from harness.study import memory
from harness.study.cells import make_cells
from harness.study.session import Session
from tests.kit.study_kit import command, write_corpus

_HUGE = {
    "scale.batch": ("scale.batch=65536",),
    "compute.sample_batch": ("compute.sample_batch=65536", "study.samples=65536"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    write_corpus(folder / "corpus.txt")
    return folder


def _check(root, monkeypatch, gib: float, *more: str) -> None:
    arguments = command(root / "corpus.txt", root / "runs", root / "cache", "only=[mdlm]", *more)
    session = Session(load(arguments).tree)
    monkeypatch.setattr(memory, "memory_limit", lambda: int(gib * 2**30))
    memory.check_memory(session, make_cells(session))


@pytest.mark.parametrize("key", _HUGE)
def test_what_cannot_fit_is_refused_with_what_does(root, monkeypatch, key):
    with pytest.raises(
        UserError, match=rf"{key}=65536: 65536 sequences of 32 tokens at once take .* there are 0.25 GiB"
    ) as said:
        _check(root, monkeypatch, 0.25, *_HUGE[key])
    fits = re.search(r"use ([\w.]+=\d+)", str(said.value)).group(1)
    _check(root, monkeypatch, 0.25, *_HUGE[key], fits)


def test_ordinary_sizes_are_not_measured(root, monkeypatch):
    monkeypatch.setattr(memory, "_kept", None)
    monkeypatch.setattr(memory, "_largest", None)
    _check(root, monkeypatch, 4.0)


def _takes(root, monkeypatch, *more: str) -> float:
    """GiB that a batch is said to take."""
    with pytest.raises(UserError) as said:
        _check(root, monkeypatch, 0.005, *more)
    return float(re.search(r"at once take ([\d.e-]+) GiB", str(said.value)).group(1))


def test_blocks_that_are_computed_again_are_not_counted(root, monkeypatch):
    size = ("scale.batch=8192", "scale.depth=6")
    kept = _takes(root, monkeypatch, *size)
    assert _takes(root, monkeypatch, *size, "compute.activation_checkpointing=true") < 0.35 * kept
    _check(root, monkeypatch, 0.5 * kept, *size, "compute.activation_checkpointing=true")


def test_a_share_of_the_weights_is_counted_where_each_process_holds_one(root, monkeypatch):
    size = ("scale.batch=512", "scale.width=256", "train.accumulate=2", "compute.processes=2")
    session = Session(load(command(root / "corpus.txt", root / "runs", root / "cache", "only=[mdlm]", *size)).tree)
    weights = sum(p.nbytes for p in session.build("mdlm").parameters()) / 2**30
    saved = _takes(root, monkeypatch, *size) - _takes(root, monkeypatch, *size, "compute.shard=true")
    assert saved == pytest.approx(2 * weights, rel=0.1)
