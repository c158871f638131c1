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
