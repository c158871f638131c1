"""The journal of a tuning: Optuna's own format, written so that a process that is killed does no harm to it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from harness.store import _end_of_whole_lines


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for, and hold, the lock on the file `path`; the system lets go of it when the process dies."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class JournalLock:
    """What Optuna's journal wants of a lock, by `flock`: its own locks outlive a killed process for half a minute."""

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held = held(self._path)
        self._held.__enter__()
        return True

    def release(self) -> None:
        self._held.__exit__(None, None, None)


class WholeLines(JournalFileBackend):
    """A journal whose last line, where a killed process left it unfinished, is taken off before the next is written.

    Otherwise the next line would be glued to the torn one, and the journal could not be read any more. The torn line was
    never acknowledged to whoever wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = JournalLock(path.with_name(path.name + ".flock"))  # Optuna's own lock is `.lock`, a symlink
        super().__init__(str(path), self._lines)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records as whole lines; the end of a trial, and with it all before, is on the disk before it returns."""
        content = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        self._lines.acquire()
        try:
            with open(self._path, "ab+", buffering=0) as handle:
                end = handle.seek(0, os.SEEK_END)
                whole = _end_of_whole_lines(handle, end)
                if whole < end:
                    handle.truncate(whole)
                if handle.write(content) != len(content):
                    raise OSError(f"cannot write all of a record to {self._path}")
                if any("state" in log for log in logs):
                    os.fsync(handle.fileno())  # milliseconds: not for each of the twenty records of a trial
        finally:
            self._lines.release()


def what_is_wrong(path: Path, error: Exception) -> str:
    """Which line of a journal is no record."""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                if not isinstance(json.loads(line), dict):
                    raise ValueError
            except ValueError:
                return f", line {number}, is not a record of a journal"
    return f" is not the journal of a study ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
