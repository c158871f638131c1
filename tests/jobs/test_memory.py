"""What is known of memory: the container's limit, and that the kernel has killed a worker for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from harness.jobs import memory, pool
from harness.jobs.pool import Message, Pool, Serve
from harness.jobs.schedule import Task

_WHERE = {
    "version 2": ("0::/box/job\n", "", "memory.max", "memory.events", "low 0\noom 3\noom_kill {}\n"),
    "version 1": (
        "4:memory:/box/job\n1:cpu:/\n0::/\n",
        "memory",
        "memory.limit_in_bytes",
        "memory.oom_control",
        "oom_kill {}\n",
    ),
    "seen from inside": ("0::/not/here\n", "", "memory.max", "memory.events", "oom_kill {}\n"),
}


@pytest.fixture(params=_WHERE)
def group(request, monkeypatch, tmp_path):
    """Writes the files of a memory group; those above it have no limit."""
    own, kind, limit, events, text = _WHERE[request.param]
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    top = tmp_path / kind
    folder = top if "inside" in request.param else top / "box" / "job"
    folder.mkdir(parents=True, exist_ok=True)
    if folder != top:
        (top / limit).write_text("max\n" if limit == "memory.max" else "9223372036854771712\n")

    def write(most: int, kills: int) -> Path:
        (folder / limit).write_text(f"{most}\n")
        (folder / events).write_text(text.format(kills))
        return folder

    return write


def test_a_containers_limit_holds(group):
    group(3 * 2**20, 0)
    assert memory.memory_limit() == 3 * 2**20 + psutil.swap_memory().total
    group(2**60, 0)
    assert memory.memory_limit() == psutil.virtual_memory().total + psutil.swap_memory().total


def test_a_kill_for_memory_is_told_from_others(group):
    group(3 * 2**30, 1)
    before = memory.oom_kills()
    assert memory.why_killed(before) == ""
    group(3 * 2**30, 2)
    assert memory.oom_kills() == before + 1 and "the kernel killed it, as memory ran out" in memory.why_killed(before)


def _shot(context: str) -> Serve:
    """A worker that is killed once it has a job, and writes down that the kernel did it."""

    def serve(job: object, talk: object) -> None:
        Path(context).write_text("oom_kill 1\n")
        os.kill(os.getpid(), signal.SIGKILL)

    return serve


def test_a_worker_that_the_kernel_killed_says_so(monkeypatch, tmp_path):
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 0\n")
    monkeypatch.setattr(pool, "oom_kills", lambda: int(events.read_text().split()[1]))
    monkeypatch.setattr(memory, "oom_kills", pool.oom_kills)
    heard: list[Message] = []
    workers = Pool(_shot, str(events), 1, tmp_path / "workers.log")
    try:
        for _ in range(2):  # the second time nobody knows why
            before, until = len(heard), time.monotonic() + 60
            workers.assign(workers.idle()[0], Task(("train", "it")))
            while len(heard) == before and time.monotonic() < until:
                workers.poll(1.0, lambda task, message: heard.append(message))
    finally:
        workers.stop()
    first, second = (message.text for message in heard)
    assert first.startswith(
        "worker process ended with exit code -9: the kernel killed it, as memory ran out (there are "
    )
    assert second == "worker process ended with exit code -9"
