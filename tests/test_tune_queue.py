"""One count of trials, whoever dies when: asking that is cut off at any of its writes leaves nothing lost or doubled."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from harness.search.queue import Queue
from harness.search.samplers import make_pruner, make_sampler, trial_seed
from harness.search.schema import DimensionConfig, ObjectiveConfig, PrunerConfig, TuneConfig
from harness.search.storage import open_store
from harness.search.trials import (
    ASKED_BY,
    FAILURE,
    LOST,
    RETRY_OF,
    STOPPED,
    TRIES,
    all_trials,
    front,
    so_far,
    status,
    tally,
)  # fmt: skip
from tests.tune_kit import make_loaded


class _Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def _config(wanted: int = 5, retries: int = 3) -> TuneConfig:
    space = {"x": DimensionConfig("float", 0, 1), "y": DimensionConfig("int", 1, 64)}
    return TuneConfig(name="toy", space=space, objectives={"q": ObjectiveConfig()}, trials=wanted, retries=retries)


def _queue(folder: Path, wanted: int = 5, retries: int = 3) -> Queue:
    """That of another command each time."""
    cfg = _config(wanted, retries)
    return Queue(open_store(make_loaded(folder, cfg, folder=folder)), cfg, folder / "commands")


def _values(queue: Queue) -> list[dict]:
    return [queue.asked[number].params for number in sorted(queue.asked)]


def _tell(queue: Queue, number: int, value: float = 1.0) -> None:
    queue.store.study.tell(queue.asked.pop(number).trial, value)


def _statuses(queue: Queue) -> Counter:
    return Counter(status(t) for t in all_trials(queue.store.study))


def _die(queue: Queue, most: int = 1) -> list[dict]:
    """Ask, and be killed: nothing is put back, and the system lets go of the lock."""
    stack = contextlib.ExitStack()
    stack.enter_context(queue.present())
    queue.ask(most)
    values = _values(queue)
    queue.end = queue._leave = lambda *a: None  # a dead command does nothing
    stack.close()
    return values


def test_trials_are_given_out_until_all_places_are_taken(tmp_path):
    queue = _queue(tmp_path, wanted=3)
    with queue.present():
        queue.ask(2)
        queue.ask(2)
        assert sorted(queue.asked) == [0, 1, 2], "three are wanted"
        _tell(queue, 0)
        queue.end(1, {}, TrialState.PRUNED)
        queue.ask(1)
        assert sorted(queue.asked) == [2]
        queue.end(2, {FAILURE: "it diverged"})
        queue.ask(1)
        assert not queue.asked
    now = tally(all_trials(queue.store.study))
    assert (now.complete, now.pruned, now.failed, now.counted) == (1, 1, 1, 3)
    more = _queue(tmp_path, wanted=4)
    more.ask(5)
    assert list(more.asked) == [3]


def test_a_trial_of_a_dead_command_is_begun_again_with_its_values(tmp_path):
    (lost,) = _die(_queue(tmp_path, wanted=2))
    queue = _queue(tmp_path, wanted=2)
    with queue.present():
        queue.ask(1)
        (again,) = queue.asked.values()
        assert again.params == lost and again.trial.user_attrs[RETRY_OF] == 0 and again.tries == 1
        first = all_trials(queue.store.study)[0]
        assert status(first) == "lost" and first.user_attrs[ASKED_BY] in first.user_attrs[LOST]
        queue.ask(5)
        assert _statuses(queue) == {"lost": 1, "running": 2}


def test_the_trials_of_a_living_command_are_left_alone(tmp_path):
    one, two = _queue(tmp_path), _queue(tmp_path)
    with one.present(), two.present():
        for _ in range(2):
            one.ask(1)
            two.ask(1)
        assert _statuses(one) == {"running": 4} and not set(one.asked) & set(two.asked)


def test_retries_are_limited_and_a_new_trial_takes_the_place(tmp_path):
    values = [_die(_queue(tmp_path, wanted=1, retries=2))[0] for _ in range(4)]
    assert values[0] == values[1] == values[2] != values[3]
    queue = _queue(tmp_path, wanted=1, retries=2)
    queue.ask(1)
    assert _statuses(queue) == {"lost": 4, "running": 1} and _values(queue) == [values[3]]


def test_trials_that_were_put_back_are_asked_for_again_and_nothing_is_held_against_them(tmp_path):
    first = _queue(tmp_path, wanted=1, retries=0)
    with first.present():
        first.ask(1)
        values = _values(first)
    assert not list((tmp_path / "commands").iterdir()), "who leaves in good order leaves nothing behind"
    assert all_trials(first.store.study)[0].user_attrs[STOPPED] is True
    queue = _queue(tmp_path, wanted=1, retries=0)
    with queue.present():
        queue.ask(1)
        assert _values(queue) == values and queue.asked[1].trial.user_attrs[TRIES] == 0


def test_the_result_of_a_command_that_was_taken_for_dead_is_not_counted_twice(tmp_path):
    late, queue = _queue(tmp_path, wanted=1), _queue(tmp_path, wanted=1)
    late.ask(1)  # without a lock
    with queue.present():
        queue.ask(1)
        with pytest.raises((optuna.exceptions.UpdateFinishedTrialError, ValueError)):
            _tell(late, 0)
        late.store.end(0, {FAILURE: "late as well"}, TrialState.FAIL)  # says nothing: the trial has ended
        _tell(queue, 1, 2.0)
        assert _statuses(queue) == {"lost": 1, "complete": 1}


def test_a_failure_that_was_written_before_the_kill_counts(tmp_path):
    queue = _queue(tmp_path, wanted=1)
    queue.ask(1)
    queue.asked[0].trial.set_user_attr(FAILURE, "it diverged")
    other = _queue(tmp_path, wanted=1)
    other.ask(1)
    assert not other.asked and _statuses(other) == {"failed": 1}


def test_a_trial_whose_asking_was_cut_off_by_the_database_is_not_forgotten(tmp_path):
    queue = _queue(tmp_path, wanted=1)
    with queue.present():
        queue.ask(1)
        (values,) = _values(queue)
        queue.asked.clear()  # it was asked for, and the answer did not arrive
        queue.ask(1)
        assert _values(queue) == [values] and _statuses(queue) == {"lost": 1, "running": 1}


def test_a_name_from_the_storage_cannot_point_outside_the_folder(tmp_path):
    queue = _queue(tmp_path)
    (tmp_path / "victim.lock").write_text("")
    assert queue._lock_file("../victim").parent == tmp_path / "commands"


def _kill_at(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """The process dies before its `write`-th record is written."""
    left = [write]
    append = JournalFileBackend.append_logs

    def appended(self, logs):
        left[0] -= 1
        if left[0] < 0:
            raise _Killed
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", appended)


def test_asking_may_be_cut_off_at_any_write(tmp_path):
    """The command that is cut off has a dead one's trial to fail, to ask for again, and to take."""
    for write in range(100):
        folder = tmp_path / str(write)
        queue = _queue(folder, wanted=3)
        with queue.present():
            queue.ask(1)
            _tell(queue, 0, 0.5)
            (values,) = _die(_queue(folder, wanted=3))
            cut = _queue(folder, wanted=3)
            with pytest.MonkeyPatch.context() as patch:
                _kill_at(patch, write)
                with contextlib.suppress(_Killed):
                    cut.ask(1)
            while not queue.asked:
                queue.ask(1)
                for number in list(queue.asked):
                    _tell(queue, number)
                if tally(all_trials(queue.store.study)).counted >= 3:
                    break
        trials = all_trials(queue.store.study)
        assert tally(trials).counted == 3 and tally(trials).running == 0
        complete = [t.params for t in trials if status(t) == "complete"]
        assert complete.count(values) == 1, f"cut off at write {write}: its values were lost or run twice"
        again = [t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs]
        assert len(again) == len(set(again)), "asked for again twice"
        if cut.asked:
            assert write > 5
            return
    raise AssertionError("it never came to the end")


# ---- samplers and pruners ---------------------------------------------------------------------------------------------
def test_samplers_differ_by_trial_and_not_by_worker():
    cfg = _config()
    cfg.sampler = "random"
    assert len({trial_seed(0, n) for n in range(1000)} | {trial_seed(1, n) for n in range(1000)}) == 2000
    draws = []
    for number in (0, 1, 0):
        study = optuna.create_study(sampler=make_sampler(cfg, number))
        draws.append(study.ask().suggest_float("x", 0, 1))
    assert draws[0] == draws[2] != draws[1]


def test_samplers_take_constraints_and_pruned_trials():
    """An infeasible trial with the best value does not attract the sampler; a pruned one has no constraints."""
    cfg, study, asked = _config(), optuna.create_study(), []
    cfg.constraints, cfg.startup = {"limit": None}, 5
    for number in range(40):
        study.sampler = make_sampler(cfg, number)
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
def test_pruners(kind, made):
    cfg = _config()
    cfg.pruner = PrunerConfig(kind=kind)
    assert type(make_pruner(cfg, 100)).__name__ == made


def test_a_median_pruner_waits_for_its_share_of_the_steps():
    cfg, study = _config(), optuna.create_study()
    cfg.pruner = PrunerConfig(kind="median", startup=2, warmup=0.5)
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


# ---- the best so far --------------------------------------------------------------------------------------------------
def _study(values, directions=("minimize",), constraints=None) -> optuna.Study:
    study = optuna.create_study(directions=list(directions))
    for k, value in enumerate(values):
        attributes = {} if constraints is None else {"constraints": [constraints[k]]}
        study.add_trial(optuna.create_trial(values=list(value), user_attrs=attributes))
    return study


def _said(study: optuna.Study) -> str:
    return so_far(all_trials(study), study.directions)


def test_the_best_is_the_best_feasible_one():
    assert _said(_study([[3.0], [1.0], [2.0]])) == "best 1 (trial 1)"
    assert _said(_study([[3.0], [1.0], [2.0]], ["maximize"])) == "best 3 (trial 0)"
    assert _said(_study([[3.0], [1.0]], constraints=[-1.0, 0.5])) == "best 3 (trial 0)"
    assert _said(_study([[3.0]], constraints=[0.5])) == "none meets the constraints yet"
    assert _said(_study([])) == "none done yet"
    study = _study([[1.0]])
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED))
    assert _said(study) == "1 pruned, best 1 (trial 0)"


def test_the_front_of_two_objectives_is_optunas():
    values = [[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [2.0, 4.0], [1.0, 5.0], [0.5, 0.0]]
    study = _study(values, ["minimize", "maximize"])
    assert {t.number for t in front(all_trials(study), study.directions)} == {t.number for t in study.best_trials}
    assert _said(study) == f"{len(study.best_trials)} trials on the front"
