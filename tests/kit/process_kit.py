"""A command in a process of its own, which is watched and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


def start(module: str, arguments: list[str], log: Path) -> subprocess.Popen:
    """`python -m module` with these arguments; what it prints is added to `log`."""
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
            # A shell's background job ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def wait_for(happened: Callable[[], Any], process: subprocess.Popen, log: Path, every: float = 0.03) -> Any:
    """What `happened` says once that is something, asked `every` so many seconds; a failure after two minutes.

    Or where the command ends before.
    """
    until = time.monotonic() + 120
    while not (found := happened()):
        assert process.poll() is None, f"it ended before\n{log.read_text()}"
        assert time.monotonic() < until, f"it never came so far\n{log.read_text()}"
        time.sleep(every)
    return found


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The worker processes of a command, those of its workers too; none where it has ended."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found
