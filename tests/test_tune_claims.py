"""One count of trials, whoever dies when: a claim that is cut off at any of its writes leaves nothing lost or doubled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from harness.search.claims import (
    FAILURE,
    LOST,
    RETRY_OF,
    STOPPED,
    TRIES,
    Claims,
    all_trials,
    give_up,
    put_back,
    status,
    tally,
)
from harness.search.journal import WholeLines
from harness.search.presence import Presence
from harness.search.samplers import make_pruner, make_sampler, trial_seed
from harness.search.storage import open_study
from tests.tune_fakes import load_fake


class _Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def _suggest(trial):
    return {"x": trial.suggest_float("x", 0, 1), "y": trial.suggest_int("y", 1, 64)}


def _claims(folder, wanted=5, retries=3):
    loaded = load_fake([f"folder={folder}"], [])
    return Claims(open_study(loaded, ["minimize"]), folder / "workers", wanted, retries)


def _claim(claims, worker="gone"):
    return claims.claim(worker, lambda number: None, _suggest)


def _statuses(claims):
    return Counter(status(t) for t in all_trials(claims.opened.study))


def test_trials_are_given_out_until_all_places_are_taken(tmp_path):
    claims = _claims(tmp_path, wanted=3)
    with Presence(claims.workers, 0, 60) as me:
        trials = [_claim(claims, me.name)[0] for _ in range(3)]
        assert _claim(claims, me.name) is None and not claims.finished()
        claims.opened.study.tell(trials[0], 1.0)
        claims.opened.study.tell(trials[1], state=TrialState.PRUNED)
        assert _claim(claims, me.name) is None and not claims.finished()
        give_up(claims.opened, trials[2], "it diverged")
        assert _claim(claims, me.name) is None and claims.finished()
    now = tally(all_trials(claims.opened.study))
    assert (now.complete, now.pruned, now.failed, now.counted) == (1, 1, 1, 3)
    more = _claims(tmp_path, wanted=4)
    assert _claim(more)[0].number == 3


def test_a_trial_of_a_dead_worker_is_begun_again_with_its_values(tmp_path):
    claims = _claims(tmp_path, wanted=2)
    with Presence(claims.workers, 0, 60) as me:
        _, lost = _claim(claims, "gone")
        trial, values = _claim(claims, me.name)
        assert values == lost and trial.user_attrs[RETRY_OF] == 0 and trial.user_attrs[TRIES] == 1
        first = all_trials(claims.opened.study)[0]
        assert status(first) == "lost" and "gone" in first.user_attrs[LOST]
        _claim(claims, me.name)
        assert _claim(claims, me.name) is None
    assert _statuses(claims) == {"lost": 1, "running": 2}


def test_the_trial_of_a_living_worker_is_left_alone(tmp_path):
    claims = _claims(tmp_path)
    with Presence(claims.workers, 0, 60) as one, Presence(claims.workers, 1, 60) as two:
        for _ in range(2):
            _claim(claims, one.name)
            _claim(claims, two.name)
    assert _statuses(claims) == {"running": 4}


def test_retries_are_limited_and_a_new_trial_takes_the_place(tmp_path):
    claims = _claims(tmp_path, wanted=1, retries=2)
    values = [_claim(claims, "gone")[1] for _ in range(4)]
    assert values[0] == values[1] == values[2] != values[3]
    assert _statuses(claims) == {"lost": 3, "running": 1}


def test_a_trial_that_was_put_back_is_not_held_against_it(tmp_path):
    claims = _claims(tmp_path, wanted=1, retries=0)
    with Presence(claims.workers, 0, 60) as me:
        trial, values = _claim(claims, me.name)
        put_back(claims.opened, trial)
        again, same = _claim(claims, me.name)
    assert same == values and again.user_attrs[TRIES] == 0
    assert all_trials(claims.opened.study)[0].user_attrs[STOPPED] is True


def test_the_result_of_a_worker_that_was_taken_for_dead_is_not_counted_twice(tmp_path):
    claims = _claims(tmp_path, wanted=1)
    late, _ = _claim(claims, "slow")
    with Presence(claims.workers, 0, 60) as me:
        again, _ = _claim(claims, me.name)
        with pytest.raises((optuna.exceptions.UpdateFinishedTrialError, ValueError)):
            claims.opened.study.tell(late, 1.0)
        give_up(claims.opened, late, "late as well")  # says nothing: the trial has ended
        claims.opened.study.tell(again, 2.0)
    assert claims.finished() and _statuses(claims) == {"lost": 1, "complete": 1}


def test_a_failure_that_was_written_before_the_kill_counts(tmp_path):
    claims = _claims(tmp_path, wanted=1)
    trial, _ = _claim(claims, "gone")
    trial.set_user_attr(FAILURE, "it diverged")
    assert _claim(claims, "gone") is None
    assert claims.finished() and _statuses(claims) == {"failed": 1}


def _kill_at(monkeypatch, write: int) -> None:
    """The process dies before its `write`-th record is written."""
    left = [write]
    append = WholeLines.append_logs

    def appended(self, logs):
        left[0] -= 1
        if left[0] < 0:
            raise _Killed
        append(self, logs)

    monkeypatch.setattr(WholeLines, "append_logs", appended)


def test_a_claim_may_be_cut_off_at_any_write(tmp_path):
    """The claim that is cut off has a dead worker's trial to fail, to ask for again, and to take."""
    for write in range(100):
        folder = tmp_path / str(write)
        claims = _claims(folder, wanted=3)
        with Presence(claims.workers, 0, 60) as me:
            done, _ = _claim(claims, me.name)
            claims.opened.study.tell(done, 0.5)
            _, values = _claim(claims, "gone")
            with pytest.MonkeyPatch.context() as patch:
                _kill_at(patch, write)
                try:
                    _claim(_claims(folder, wanted=3), "gone too")
                    cut = False
                except _Killed:
                    cut = True
            taken = []
            while (claimed := _claim(claims, me.name)) is not None:
                taken.append(claimed[1])
                claims.opened.study.tell(claimed[0], 1.0)
        trials = all_trials(claims.opened.study)
        assert claims.finished() and tally(trials).counted == 3 and tally(trials).running == 0
        complete = [t.params for t in trials if status(t) == "complete"]
        assert complete.count(values) == 1, f"cut off at write {write}: its values were lost or run twice"
        again = [t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs]
        assert len(again) == len(set(again)), "asked for again twice"
        if not cut:
            assert write > 5
            return
    raise AssertionError("it never came to the end")


def test_samplers_differ_by_trial_and_not_by_worker(tmp_path):
    cfg = load_fake([f"folder={tmp_path}", "sampler=random"], []).cfg
    assert len({trial_seed(0, n) for n in range(1000)} | {trial_seed(1, n) for n in range(1000)}) == 2000
    draws = []
    for number in (0, 1, 0):
        study = optuna.create_study(sampler=make_sampler(cfg, number))
        draws.append(study.ask().suggest_float("x", 0, 1))
    assert draws[0] == draws[2] != draws[1]


def test_samplers_take_constraints_and_pruned_trials(tmp_path):
    """An infeasible trial with the best value does not attract the sampler; a pruned one has no constraints."""
    loaded = load_fake([f"folder={tmp_path}"], [])
    loaded.cfg.constraints = {"limit": None}
    loaded.cfg.startup = 5
    study = open_study(loaded, ["minimize"]).study
    asked = []
    for number in range(40):
        study.sampler = make_sampler(loaded.cfg, number)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        asked.append(x)
        if number % 9 == 8:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        trial.set_user_attr("constraints", [0.5 - x])  # x must be at least 0.5
        study.tell(trial, x)
    assert np.median(asked[20:]) > 0.4  # without the constraint it would be near 0


@pytest.mark.parametrize(
    ("kind", "made"), [("none", "NopPruner"), ("median", "MedianPruner"), ("hyperband", "HyperbandPruner")]
)
def test_pruners(tmp_path, kind, made):
    cfg = load_fake([f"folder={tmp_path}", f"pruner={kind}"], []).cfg
    assert type(make_pruner(cfg, 100)).__name__ == made


def test_a_median_pruner_waits_for_its_share_of_the_steps(tmp_path):
    cfg = load_fake([f"folder={tmp_path}", "pruner=median"], []).cfg
    cfg.pruner.startup, cfg.pruner.warmup = 2, 0.5
    study = open_study(load_fake([f"folder={tmp_path}"], []), ["minimize"]).study
    study.pruner = make_pruner(cfg, 100)
    for value in (1.0, 2.0):
        trial = study.ask()
        for step in (25, 50, 75):
            trial.report(value, step)
        study.tell(trial, value)
    bad = study.ask()
    said = []
    for step in (25, 50, 75):
        bad.report(9.0, step)
        said.append(bad.should_prune())
    assert said == [False, True, True]
    good = study.ask()
    good.report(0.5, 75)
    assert not good.should_prune()
