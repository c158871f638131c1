"""Ctrl-C, SIGTERM and SIGHUP: one line, the exit code of a shell, and what was begun ends whole however often they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from harness.jobs.launch import python_path
from harness.jobs.pool import Message, Pool, Talk
from harness.jobs.schedule import Task

_ROOT = Path(__file__).parents[2]
_SAID = "stopped; the same command continues where it was\n"
#: A command that works until it is stopped, and then takes a while to put its things in order.
_COMMAND = """
import sys, time
from pathlib import Path
from harness import cli

def run(given):
    folder = Path(given.overrides[0])
    try:
        (folder / "at work").touch()
        time.sleep(60)
    finally:
        time.sleep(0.5)
        (folder / "in order").touch()
        time.sleep(0.5)

sys.exit(cli.main(run, lambda folders: ""))
"""


def _start(folder: Path, *, ignored: tuple[signal.Signals, ...] = ()) -> subprocess.Popen:
    def prepare() -> None:
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(folder)], cwd=_ROOT, env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (folder / "at work").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_answered_in_one_line_with_the_code_of_a_shell(tmp_path, number, code):
    process = _start(tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == _SAID and process.returncode == code
    assert (tmp_path / "in order").exists()


def test_more_of_them_change_nothing(tmp_path):
    process = _start(tmp_path)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.15)
    assert process.communicate(timeout=30)[1] == _SAID and process.returncode == 130
    assert (tmp_path / "in order").exists(), "what the first one set in motion ended"


def test_what_is_ignored_from_the_start_stays_so(tmp_path):
    process = _start(tmp_path, ignored=(signal.SIGHUP,))  # as under nohup
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == _SAID and process.returncode == 143


def _begin(context: object):
    def serve(job: object, talk: Talk) -> str:
        return f"did {job}"

    return serve


def _loud(context: object):
    def serve(job: object, talk: Talk) -> None:
        warnings.warn("of a library", stacklevel=1)
        os.write(2, b"of compiled code\n")
        print("a line of our own", file=sys.stderr)

    return serve


def _served(pool: Pool) -> list[Message]:
    said: list[Message] = []
    pool.assign(pool.workers[0], Task(("kind", "name"), job="it"))
    until = time.monotonic() + 60
    while not said and time.monotonic() < until:
        pool.poll(1.0, lambda task, message: said.append(message))
    return said


def test_what_libraries_say_in_a_worker_goes_to_its_log(capfd, tmp_path):
    log = tmp_path / "errors" / "workers.log"
    pool = Pool(_loud, None, 1, log)
    try:
        assert [m.kind for m in _served(pool)] == ["done"]
    finally:
        pool.stop()
    assert capfd.readouterr().err == "a line of our own\n"
    assert "UserWarning: of a library" in log.read_text() and "of compiled code" in log.read_text()


_LEAK = """
import multiprocessing, sys, time
from pathlib import Path
from harness import cli
from harness.jobs.pool import Pool
from harness.jobs.schedule import Task

def begin(context):
    def serve(job, talk):
        lock = multiprocessing.get_context("spawn").RLock()
        talk.progress("holds it", 1, 1)
        time.sleep(60)
    return serve

def run(given):
    pool, said = Pool(begin, None, 1, Path("workers.log")), []
    pool.assign(pool.workers[0], Task(("kind", "name")))
    while not said:
        pool.poll(1.0, lambda task, message: said.append(message))
    pool.stop()
    return said[0].text

if __name__ == "__main__":
    sys.exit(cli.main(run, lambda folders: "", ["go"]))
"""


def test_a_killed_workers_semaphores_are_nothing_to_warn_of(tmp_path):
    (tmp_path / "leak.py").write_text(_LEAK)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"} | {
        "PYTHONPATH": python_path()
    }
    # Its end is that of the last process that holds its standard error: of the one that takes the semaphore away.
    ended = subprocess.run(
        [sys.executable, "leak.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "holds it\n", "")


def test_a_worker_hears_nothing_of_a_terminal_from_its_first_moment_on(tmp_path):
    pool = Pool(_begin, None, 1, tmp_path / "workers.log")
    try:
        for number in (signal.SIGINT, signal.SIGHUP):  # while it still imports what it needs
            os.kill(pool.workers[0].process.pid, number)
        said = _served(pool)
    finally:
        pool.stop()
    assert [(m.kind, m.value) for m in said] == [("done", "did it")] and not (tmp_path / "workers.log").exists()
