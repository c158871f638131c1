"""Documents that share a run of symbols are found, through others too, whatever the number of parts and blocks."""

import numpy as np
import pytest

from harness.data import groups
from harness.data.groups import groups_of


def by_hand(documents: list[np.ndarray], run: int) -> list[int]:
    """The same by comparing all runs."""
    leader, seen = list(range(len(documents))), {}

    def first(d: int) -> int:
        return d if leader[d] == d else first(leader[d])

    for number, own in enumerate(documents):
        for start in range(len(own) - run + 1):
            one, other = sorted((first(seen.setdefault(own[start : start + run].tobytes(), number)), first(number)))
            leader[other] = one
    return [first(d) for d in range(len(documents))]


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """300 random ones, some of which begin like others."""
    rng = np.random.default_rng(0)
    made = [rng.integers(27, size=rng.integers(120)).astype(np.uint8) for _ in range(300)]
    for one, other, size in zip(*rng.integers(300, size=(2, 120)), rng.integers(5, 40, size=120), strict=True):
        made[other] = np.concatenate([made[other], made[one][:size]])
    return made


@pytest.mark.parametrize("run", [1, 2, 3, 7, 16, 40, 41, 500])
def test_groups_are_those_of_all_pairs(documents, run):
    assert groups_of(documents, run).tolist() == by_hand(documents, run)


def test_parts_and_blocks_change_nothing(documents, monkeypatch):
    whole = groups_of(documents, 12).tolist()
    monkeypatch.setattr(groups, "_AT_ONCE", 700)
    monkeypatch.setattr(groups, "_BLOCK", 64)
    assert groups_of(documents, 12).tolist() == whole and 1 < len(set(whole)) < 300


def test_runs_stop_at_the_end_of_a_document():
    one, other, both = (np.frombuffer(text.encode(), dtype=np.uint8) for text in ("abcd", "efgh", "cdef"))
    assert groups_of([one, other, both], 4).tolist() == [0, 1, 2]
    assert groups_of([one, other, both], 2).tolist() == [0, 0, 0], "the third links the others"
    assert groups_of([], 4).tolist() == [] and groups_of([one[:0]], 4).tolist() == [0]


@pytest.mark.parametrize("run", [1, 3, 8, 11])
def test_hashes_are_the_polynomials_that_they_are_called(run):
    symbols = [3, 0, 26, 5, 5, 0, 1, 9, 12, 7, 2, 4]
    polynomials = [
        sum(symbol * groups._BASE ** (run - 1 - place) for place, symbol in enumerate(symbols[start : start + run]))
        % 2**64
        for start in range(len(symbols) - run + 1)
    ]
    assert groups._hashes(np.array(symbols, dtype=np.uint8), run).tolist() == polynomials
