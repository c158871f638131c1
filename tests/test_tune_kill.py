"""Workers that are killed at random moments: the wanted number of trials, none counted twice, no result lost."""

from __future__ import annotations

import json

import pytest

from harness.search.claims import WORKER
from tests.tune_fakes import check_nothing_lost, kill_workers


def test_eight_workers_on_a_fresh_journal_each_killed(tmp_path):
    done = kill_workers(tmp_path / "tune", workers=8, trials=40, kills=1, seconds=0.3, seed=0)
    check_nothing_lost(done)
    assert sum(done.kills.values()) == 8 and done.kills["in a trial"] > 0, done.kills
    names = {t.user_attrs[WORKER] for t in done.trials if WORKER in t.user_attrs}
    assert len(names) >= 8
    lines = (tmp_path / "tune" / "journal.log").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_the_check_finds_what_is_lost_and_what_is_doubled(tmp_path):
    done = kill_workers(tmp_path / "tune", workers=1, trials=6, kills=0, seconds=0.0, seed=0)
    check_nothing_lost(done)
    complete = next(t for t in done.trials if t.values)
    for trials in ([t for t in done.trials if t is not complete], [*done.trials, complete]):
        with pytest.raises(AssertionError):
            check_nothing_lost(type(done)(done.loaded, trials, done.kills, done.seconds))
    with open(done.loaded.ledger, "a", encoding="utf-8") as ledger:
        ledger.write('{"x": 2.0}\n')
    with pytest.raises(AssertionError, match="a result is lost"):
        check_nothing_lost(done)
