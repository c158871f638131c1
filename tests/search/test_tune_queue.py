"""One count of trials, whoever dies when: asking that is cut off at any of its writes leaves nothing lost or doubled."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from harness.search.queue import Queue
from harness.search.schema import DimensionConfig, ObjectiveConfig, TuneConfig
from harness.search.storage import open_store
from harness.search.trials import (
    ASKED_BY,
    FAILURE,
    LOST,
    RETRY_OF,
    STOPPED,
    TRIES,
    all_trials,
    status,
    tally,
)  # fmt: skip
from tests.kit.tune_kit import make_loaded


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
    queue.store.study.tell(queue.asked.pop(number), value)


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
    assert now == {"complete": 1, "pruned": 1, "failed": 1, "counted": 3}
    more = _queue(tmp_path, wanted=4)
    more.ask(5)
    assert list(more.asked) == [3]


def test_a_trial_of_a_dead_command_is_begun_again_with_its_values(tmp_path):
    (lost,) = _die(_queue(tmp_path, wanted=2))
    queue = _queue(tmp_path, wanted=2)
    with queue.present():
        queue.ask(1)
        (again,) = queue.asked.values()
        assert again.params == lost and again.user_attrs[RETRY_OF] == 0 and again.user_attrs[TRIES] == 1
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
        assert _values(queue) == values and queue.asked[1].user_attrs[TRIES] == 0


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
    queue.asked[0].set_user_attr(FAILURE, "it diverged")
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
                if tally(all_trials(queue.store.study))["counted"] >= 3:
                    break
        trials = all_trials(queue.store.study)
        assert tally(trials)["counted"] == 3 and not tally(trials)["running"]
        complete = [t.params for t in trials if status(t) == "complete"]
        assert complete.count(values) == 1, f"cut off at write {write}: its values were lost or run twice"
        again = [t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs]
        assert len(again) == len(set(again)), "asked for again twice"
        if cut.asked:
            assert write > 5
            return
    raise AssertionError("it never came to the end")
