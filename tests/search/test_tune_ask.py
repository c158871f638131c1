"""The search as work for the pool: what it hands out, and what it makes of results, failures, deaths and questions."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from harness.errors import UserError
from harness.jobs.loop import work_off
from harness.jobs.pool import Message
from harness.jobs.progress import Display
from harness.jobs.schedule import Task
from harness.search import storage
from harness.search.publish import SearchLog
from harness.search.queue import Queue
from harness.search.runner import PREPARE, Search
from harness.search.schema import ConstraintConfig, DimensionConfig, ObjectiveConfig, PrunerConfig, TuneConfig
from harness.search.storage import open_store
from harness.search.trial import TrialResult
from harness.search.trials import FAILURE, all_trials, status, trials_frame
from tests.kit.tune_kit import make_loaded


def _job(params: dict[str, Any]) -> dict[str, Any]:
    if params["x"] > 2:
        raise UserError("methods.m.x=3 is out\nof range")
    return params


def _search(root: Path, wanted: int = 4, high: float = 1.0, **more: Any) -> Search:
    cfg = TuneConfig(
        name="toy", space={"x": DimensionConfig("float", 0.0, high)}, objectives={"q": ObjectiveConfig()},
        constraints={"c": ConstraintConfig()}, trials=wanted, sampler="random", **more,
    )  # fmt: skip
    scale = SimpleNamespace(scale=SimpleNamespace(steps=100))
    loaded = make_loaded(
        root, cfg, job=_job, context=SimpleNamespace(session=SimpleNamespace(cfg=scale)), folder=root / "tune"
    )
    store = open_store(loaded)
    return Search(loaded, store, Queue(store, cfg, loaded.folder / "commands"), SearchLog(loaded, store.study))


def _ready(search: Search, free: int = 8) -> list[Task]:
    """What is ready, as it is when workers have it."""
    tasks = search.ready(free)
    for task in tasks:
        task.begin()
    return tasks


def _begun(root: Path, free: int = 8, **more: Any) -> tuple[Search, list[Task]]:
    """A search that is prepared, and its first trials."""
    search = _search(root, **more)
    (prepare,) = _ready(search)
    assert prepare.key == PREPARE and search.ready(8) == [] and not all_trials(search.store.study)
    search.done(prepare, None)
    return search, _ready(search, free)


def _statuses(search: Search) -> Counter:
    return Counter(status(t) for t in all_trials(search.store.study))


class _Pool:
    """Workers that answer at once: what a trial comes to is decided by `outcome`."""

    def __init__(self, count: int, outcome) -> None:
        self.workers, self._outcome, self._at_work = list(range(count)), outcome, {}

    def idle(self) -> list[int]:
        return [w for w in self.workers if w not in self._at_work]

    def assign(self, worker: int, task: Task) -> None:
        self._at_work[worker] = task

    def poll(self, seconds: float, handle) -> None:
        for worker, task in list(self._at_work.items()):
            del self._at_work[worker]
            handle(task, self._outcome(task))


def _run(search: Search, outcome, workers: int = 3) -> str:
    """Work it off; what was printed."""
    out = io.StringIO()
    with search.queue.present():
        display = Display(search.tasks, out, planned=search.loaded.cfg.trials, note=lambda: search.words, what="trials")
        work_off(search, _Pool(workers, outcome), display, stop=search.hopeless)
    return out.getvalue()


def test_it_ends_with_the_wanted_number_whatever_happens_on_the_way(tmp_path):
    seen: Counter[str] = Counter()

    def outcome(task: Task) -> Message:
        seen[task.key[1]] += 1
        if task.key == PREPARE:
            return Message("done")
        turn = sum(seen.values()) % 5
        if turn == 0:
            return Message("died", "worker process ended with exit code -9")
        if turn == 1:
            return Message("failed", "the loss is nan at step 4")
        if turn == 2:
            return Message("done", value=TrialResult(pruned="at step 20"))
        return Message("done", value=TrialResult([task.job["x"]], [float("inf")], {"a@2": 1.0}, {}, True))

    search = _search(tmp_path, wanted=20, retries=9)
    said = _run(search, outcome)
    now = _statuses(search)
    assert now["complete"] + now["pruned"] + now["failed"] == 20 and now["lost"] and not now["running"] + now["waiting"]
    assert "20/20 trials" in said.splitlines()[-1] and "failed" in said.splitlines()[-1] and "trying again" in said
    frame = trials_frame(search.store.study)
    assert set(frame.loc[frame["state"] == "lost", "number"]) == set(frame["retry_of"].dropna())
    assert not frame["feasible"].dropna().any(), "what could not be measured is not met"


def test_a_trial_whose_worker_died_is_asked_for_again_with_its_values(tmp_path):
    search, tasks = _begun(tmp_path, free=1)
    (task,) = tasks
    search.again(task)
    (again,) = _ready(search, 1)
    assert again.job == task.job and again.key != task.key
    assert _statuses(search) == {"lost": 1, "running": 1}


def test_one_that_always_kills_its_worker_is_given_up_and_another_takes_its_place(tmp_path):
    search, tasks = _begun(tmp_path, free=1, wanted=1, retries=1)
    values = tasks[0].job
    assert tasks[0].tries == 2
    search.again(tasks[0])
    (last,) = _ready(search, 1)
    assert last.tries == 1 and last.job == values
    search.failed(last, Message("died", "worker process ended"))
    (other,) = _ready(search, 1)
    assert other.job != values and _statuses(search) == {"lost": 2, "running": 1}


def test_an_objective_that_is_no_number_fails_its_trial(tmp_path):
    search, tasks = _begun(tmp_path, free=2)
    search.done(tasks[0], TrialResult([float("nan")], [0.0]))
    search.failed(tasks[1], Message("broke", "Traceback ...\nValueError: a  bug\n"))
    failed = [t.user_attrs[FAILURE] for t in all_trials(search.store.study)]
    assert failed == ["its objective is not a number (nan)", "ValueError: a bug"]
    assert "Traceback" in (search.loaded.folder / "errors" / "trial-1.txt").read_text()


def test_values_that_do_not_go_together_fail_alone(tmp_path):
    search = _search(tmp_path, wanted=12, high=4.0)
    _run(search, lambda task: Message("done", value=None if task.key == PREPARE else TrialResult([1.0], [0.0])))
    now = _statuses(search)
    assert now["complete"] and now["failed"] and sum(now.values()) == 12
    bad = next(t for t in all_trials(search.store.study) if status(t) == "failed")
    assert bad.user_attrs[FAILURE] == "methods.m.x=3 is out of range"


def test_a_search_that_only_fails_is_given_up(tmp_path):
    search = _search(tmp_path, wanted=50, workers=3)
    _run(search, lambda task: Message("done") if task.key == PREPARE else Message("failed", "no"))
    assert "all failed" in search.failures["trials"] and _statuses(search)["failed"] < 12


def test_workers_that_cannot_begin_cost_no_trial(tmp_path):
    search = _search(tmp_path)
    _run(search, lambda task: Message("broke", "Traceback ...\nRuntimeError: a bug"))
    assert "could not begin (RuntimeError: a bug)" in search.failures["workers"] and not _statuses(search)
    assert (search.loaded.folder / "errors" / "prepare-judge.txt").exists()
    refused = _search(tmp_path)
    with pytest.raises(UserError, match="^nothing can satisfy this$"):
        _run(refused, lambda task: Message("refused", "nothing can satisfy this"))
    assert not _statuses(refused)


def test_a_worker_is_told_whether_to_go_on(tmp_path):
    pruner = PrunerConfig(kind="median", startup=1, warmup=0.5)
    search, tasks = _begun(tmp_path, free=2, pruner=pruner)
    for step in (25, 50, 75):
        assert search.answer(tasks[0], (step, 1.0)) is False
    search.done(tasks[0], TrialResult([1.0], [0.0]))
    assert [search.answer(tasks[1], (step, 9.0)) for step in (25, 50, 75)] == [False, True, True]
    search.done(tasks[1], TrialResult(pruned="at step 75"))
    assert _statuses(search) == {"complete": 1, "pruned": 1}
    assert all_trials(search.store.study)[1].intermediate_values == {25: 9.0, 50: 9.0, 75: 9.0}


def test_what_another_command_took_over_is_not_told_again(tmp_path):
    search, tasks = _begun(tmp_path, free=1)
    search.store.end(0, {"lost": "taken for dead"}, optuna.trial.TrialState.FAIL)
    assert search.answer(tasks[0], (25, 1.0)) is False
    search.done(tasks[0], TrialResult([1.0], [0.0]))
    assert _statuses(search) == {"lost": 1} and not search.queue.asked


def test_trials_that_were_there_before_count(tmp_path):
    search, tasks = _begun(tmp_path, free=2, wanted=3)
    for task in tasks:
        search.done(task, TrialResult([1.0], [0.0]))
    later = _search(tmp_path, wanted=3)
    assert sum(t.state == "done" for t in later.tasks.values()) == 2
    later.done(_ready(later)[0], None)
    assert len(_ready(later)) == 1


class _Away(Exception):
    """What a database says that does not answer."""


def test_a_database_that_is_away_for_a_while_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_away", lambda error: isinstance(error, _Away))
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    search = _search(tmp_path, wanted=6)
    calls = [0]
    for name in (
        "set_trial_user_attr",
        "set_trial_state_values",
        "get_all_trials",
        "create_new_trial",
        "set_trial_param",
    ):
        real = getattr(search.store.storage, name)

        def flaky(*args, real=real, **kwargs):
            calls[0] += 1
            if calls[0] % 23 < 3:  # three calls long
                raise _Away
            answer = real(*args, **kwargs)
            if calls[0] % 31 == 0:  # done, and the answer is lost
                raise _Away
            return answer

        monkeypatch.setattr(search.store.storage, name, flaky)
    _run(search, lambda task: Message("done", value=None if task.key == PREPARE else TrialResult([1.0], [0.0])))
    monkeypatch.undo()
    now = _statuses(search)
    assert now["complete"] == 6 and not now["running"] + now["waiting"] and calls[0] > 100
