"""The order of jobs, what a failure takes with it, the pool's handling of messages and deaths, and the ETA."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.config.load import load
from harness.jobs import progress
from harness.jobs.pool import Message, Pool, Worker
from harness.jobs.progress import Display
from harness.jobs.schedule import NEEDS_FAILED, Task, critical_path, ready, spread_failure, unfinished
from harness.progress import clock
from harness.study import pace
from harness.study.cells import data_cell, make_cells
from harness.study.session import Session
from harness.study.tasks import JUDGE, make_tasks
from tests.kit.study_kit import METHODS, ROWS


def _tasks(*rows) -> dict:
    return {key: Task(key, needs, weight) for key, needs, weight in rows}


A, B, C, D = ("train", "a"), ("train", "b"), ("sample", "a"), ("score", "a")


def test_longest_chain_starts_first():
    tasks = _tasks((A, (), 1.0), (B, (), 5.0), (C, (A,), 3.0), (D, (C,), 2.0))
    assert critical_path(tasks) == {A: 6.0, B: 5.0, C: 5.0, D: 2.0}
    assert [t.key for t in ready(tasks)] == [A, B]
    tasks[A].state = "done"
    assert [t.key for t in ready(tasks)] == [C, B]  # equally long: by name, so that the order is always the same
    tasks[C].state = "running"
    assert [t.key for t in ready(tasks)] == [B]


def test_what_all_scores_wait_for_starts_before_a_longer_chain():
    """The judge is the need of every score: begun last, it would leave all workers but one without work."""
    scores = [(("score", str(i)), (C,), 2.0) for i in range(6)]
    tasks = _tasks((A, (), 5.0), (D, (A,), 1.0), (C, (), 1.0), *scores)
    assert [t.key for t in ready(tasks)] == [A, C], "with workers without end the longest chain is all"
    assert [t.key for t in ready(tasks, 2)] == [C, A] and critical_path(tasks, 2)[C] == 7.0


def test_a_task_with_two_needs_waits_for_both():
    tasks = _tasks((A, (), 1.0), (B, (), 1.0), (D, (A, B), 1.0))
    tasks[A].state = "done"
    assert [t.key for t in ready(tasks)] == [B]
    tasks[B].state = "done"
    assert [t.key for t in ready(tasks)] == [D]


def test_failure_takes_what_needs_it_and_nothing_else():
    tasks = _tasks((D, (C,), 1.0), (C, (A,), 1.0), (A, (), 1.0), (B, (), 1.0))
    tasks[A].state, tasks[A].text = "failed", "the loss is nan"
    assert unfinished(tasks)
    spread_failure(tasks)
    assert {k: t.state for k, t in tasks.items()} == {D: "failed", C: "failed", A: "failed", B: "waiting"}
    assert tasks[A].text == "the loss is nan" and tasks[C].text == tasks[D].text == NEEDS_FAILED
    tasks[B].state = "done"
    assert not unfinished(tasks)


def test_tasks_of_a_study(finished):
    session = Session(load([*finished.arguments, "study.seeds=[0,1]"]).tree)
    cells, data = make_cells(session), data_cell(session)
    assert [c.name for c in cells if c.sampler == "counts"] == [
        f"{name}/counts/seed0" for name in ("unigram", "bigram", "ngram")
    ]
    assert len(cells) == 3 + 2 * (len(ROWS) - 3)
    tasks = make_tasks(session, cells, data)
    trained = 3 + 2 * (len(METHODS) - 3)
    assert len(tasks) == 1 + trained + 2 * len(cells) + 1
    assert tasks[("score", "mdlm/ancestral/seed1")].needs == (("sample", "mdlm/ancestral/seed1"), JUDGE)
    assert tasks[("sample", "mdlm/ancestral/seed1")].needs == (("train", "mdlm/seed1"),)
    assert tasks[("score", "data")].needs == (JUDGE,)
    weight = {c.method: tasks[("train", c.weights.name)].weight for c in cells}
    assert weight["bigram"] < weight["ar"] and weight["bigram"] < weight["mdlm"] <= weight["seq"]
    first = ready(tasks)
    assert {t.key[0] for t in first} == {"judge", "train"} and tasks[JUDGE].weight == 0, "it is there already"
    assert first[-2].key[1] in ("unigram/seed0", "bigram/seed0", "ngram/seed0")


def test_the_estimate_is_of_what_is_open_shared_out_and_as_much_longer_as_others_use_the_cores(monkeypatch):
    tasks = _tasks((A, (), 10.0), (B, (), 1000.0), (C, (), 40.0))
    tasks[B].state, tasks[C].fixed = "done", 5.0
    monkeypatch.setattr(pace, "_timing", lambda session: (0.5, 2.0))
    around = 2.0 * (pace._START + pace._FIRST_SCORE + pace._END)
    assert pace.price(None, tasks, 1) == pytest.approx(around + 2.0 * (5.0 + 20.0 + 5.0))
    assert [tasks[key].weight for key in (A, C)] == [10.0, 50.0], "weights are seconds then"
    tasks = _tasks((A, (), 10.0), (C, (), 40.0))
    assert pace.price(None, tasks, 8) == pytest.approx(around + 2.0 * 20.0), "no worker shares a task"


def test_a_judge_that_is_there_costs_nothing_more(finished):
    session = Session(load(finished.arguments).tree)
    assert session.judge.left_to_train(session.data, session.cache) == 0
    assert session.judge.left_to_train(session.data, session.cache / "elsewhere") == 60 * 8 * 32


def test_each_cell_has_its_own_folder_and_key_for_what_its_weights_depend_on(finished):
    def keys(*more: str) -> dict[str, str]:
        tree = load([*finished.arguments, "only=[unigram,mdlm,seq]", *more]).tree
        return {c.name: c.key for c in make_cells(Session(tree))}

    base = keys()
    assert len(set(base.values())) == len(base) == 3
    same = ("study.nfe=[8]", "study.samples=16", "compute.workers=2", "train.checkpoint_seconds=9", "judge.steps=7")
    assert keys(*same) == base
    for other in ("scale.steps=61", "train.ema=0.9", "compute.threads=2", "scale.length=16"):
        assert not set(keys(other).values()) & set(base.values())
    changed = keys("methods.seq.latent_weight=0.5")
    assert {name for name in base if changed[name] != base[name]} == {"seq/diffusion/seed0"}


# ---- the pool ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pool(monkeypatch):
    """A pool whose workers are bare pipes; `theirs` holds the workers' ends in the order in which they were started."""
    theirs = []

    def start(self, index: int) -> Worker:
        ours, other = multiprocessing.Pipe()
        theirs.append(other)
        return Worker(SimpleNamespace(join=lambda: None, kill=lambda: None, exitcode=-9), ours)

    monkeypatch.setattr(Pool, "_start", start)
    made = Pool(None, None, 2, Path("none"))
    made.theirs = theirs
    return made


def _said(pool: Pool) -> list:
    heard = []
    pool.poll(0.2, lambda job, message: heard.append((job.key, message)))
    return heard


def test_messages_reach_the_parent_and_end_a_job(pool):
    pool.assign(pool.workers[0], Task(A))
    assert pool.theirs[0].recv() == A and len(pool.idle()) == len(pool.busy()) == 1
    pool.theirs[0].send(Message("progress", "train", 1, 9))
    assert _said(pool) == [(A, Message("progress", "train", 1, 9))] and pool.workers[0].task.key == A
    pool.theirs[0].send(Message("done"))
    assert _said(pool) == [(A, Message("done"))] and len(pool.idle()) == 2
    assert _said(pool) == []


def test_worker_that_dies_is_replaced_and_its_job_reported(pool):
    pool.assign(pool.workers[1], Task(B))
    pool.theirs[1].close()
    ((job, message),) = _said(pool)
    assert job == B and message.kind == "died" and "exit code -9" in message.text
    assert len(pool.theirs) == 3 and len(pool.idle()) == 2


def test_worker_that_died_while_idle_is_replaced_when_it_is_needed(pool):
    pool.theirs[0].close()
    pool.assign(pool.workers[0], Task(A))
    assert pool.theirs[2].recv() == A and pool.busy() == [pool.workers[0]]


# ---- progress ---------------------------------------------------------------------------------------------------------
def test_clock():
    assert [clock(s) for s in (-1, 0, 59.6, 61, 3599, 3600, 36061)] == [
        *("0:00", "0:00", "1:00", "1:01", "59:59", "1:00:00", "10:01:01"),
    ]


@pytest.fixture
def time(monkeypatch):
    now = SimpleNamespace(value=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.value))
    return now


def test_eta_is_the_rest_at_the_pace_of_what_was_done_here(time):
    tasks = _tasks((A, (), 30.0), (B, (), 60.0), (C, (A,), 10.0))
    tasks[A].state = "done"  # found done at the start: it says nothing about the pace
    display = Display(tasks, io.StringIO())
    assert display.eta() is None
    tasks[B].state, tasks[B].fraction = "running", 0.5
    time.value += 4.0
    assert display.eta() is None  # too early to say
    time.value += 8.0
    # 30 of the 70 units that were left took 12 s.
    assert display.eta() == pytest.approx(12.0 * 40 / 30)
    tasks[B].state = "done"
    time.value += 12.0
    assert display.eta() == pytest.approx(24.0 * 10 / 60)
    tasks[C].state = "failed"
    assert display.eta() == 0.0


def test_eta_begins_as_expected_and_does_not_climb_in_silence(time):
    tasks = _tasks((A, (), 40.0), (B, (), 60.0))
    display = Display(tasks, io.StringIO(), expected=100.0)
    assert display.eta() == 100.0
    tasks[A].state = "running"
    seen = []
    for _ in range(6):
        time.value += 10.0
        seen.append(display.eta())
    assert seen == [90.0, 80.0, 70.0, 60.0, 50.0, 40.0]
    tasks[
        A
    ].fraction = 0.25  # a tenth of all in 60 seconds: 540 at this pace, which is half believed, and 90 as expected
    assert display.eta() == pytest.approx(0.5 * 540.0 + 0.5 * 90.0)
    tasks[A].state = "done"
    time.value += 60.0
    assert display.eta() == pytest.approx(120.0 * 60 / 40), "and then its own pace"
    time.value += 1000.0
    assert display.eta() == 0.0


def test_a_log_gets_a_line_now_and_then(time):
    stream = io.StringIO()
    tasks = _tasks((A, (), 1.0), (JUDGE, (), 1.0))
    display = Display(tasks, stream, quiet=15.0)
    tasks[A].measured = True
    tasks[A].begin()
    tasks[A].say("train all", 30, 40)
    display.update()
    assert stream.getvalue() == ""
    time.value += 16
    display.update()
    display.update()
    assert stream.getvalue() == "[0:16, ETA 0:27, 0/2 jobs] a: train all 30/40\n"
    display.say("a line")
    assert stream.getvalue().endswith("\na line\n")
