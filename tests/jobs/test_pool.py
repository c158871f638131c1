"""A worker whose command is gone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from harness.jobs import pool


def test_a_worker_that_ends_a_job_after_its_command_was_killed_says_nothing(tmp_path, monkeypatch, capfd):
    """A kill between the end of a job and the word about it was a traceback of a broken pipe."""
    monkeypatch.setattr(pool, "die_with_parent", lambda parent: None)
    monkeypatch.setattr(pool, "_quieten", lambda log: None)
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(__name__ + ".COMMAND", ours)
    ours.send((_begin, None))
    ours.send("a job")
    pool._live(theirs, tmp_path / "log", os.getpid(), {})
    assert capfd.readouterr().err == ""


#: The command's end of the pipe.
COMMAND: Any = None


def _begin(_: None) -> Callable[[str, object], str]:
    return _serve


def _serve(job: str, talk: object) -> str:
    COMMAND.close()
    return job
