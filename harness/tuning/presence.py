"""Whether a worker lives: a locked file for each, which the system unlocks when the process dies, touched now and then.

On one host the lock tells at once. On another host that shares the folder the file's age tells, measured by the file
server's clock. Where hosts share only a database, its heartbeats tell (`harness.tuning.storage`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path


def boot_id() -> str:
    """Identity of the running kernel: locks are seen by all processes under one, whatever the host is called."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


class Presence:
    """A worker's own file `<folder>/<name>.lock`, held and touched from `__enter__` to `__exit__` or death."""

    def __init__(self, folder: Path, index: int, beat: float, also: Callable[[], None] = lambda: None) -> None:
        """`also` is called, in a thread of its own, every `beat` seconds."""
        self.name = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{index}-{uuid.uuid4().hex[:4]}"
        self.path = folder / f"{self.name}.lock"
        self._beat, self._also = beat, also
        self._ended = threading.Event()

    def __enter__(self) -> Presence:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Locked under another name first: nobody may find it without its lock.
        part = self.path.with_suffix(".part")
        self._descriptor = os.open(part, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        os.write(self._descriptor, boot_id().encode())
        os.replace(part, self.path)
        threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def _go_on(self) -> None:
        while not self._ended.wait(self._beat):
            with contextlib.suppress(Exception):  # a file server or database that is away for a moment
                self.touch()
                self._also()

    def touch(self) -> None:
        """Say that this worker lives."""
        os.utime(self.path)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._ended.set()
        if kind is None:  # else the file stays, unlocked: a trial may have been left behind
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def is_dead(folder: Path, name: str, grace: float, missing: bool) -> bool:
    """Whether the worker `name` is known to be gone; `missing` is the answer where it has no file in this folder."""
    path = folder / f"{Path(name).name}.lock"  # the name is read from a storage that others write to
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return missing
    try:
        if os.read(descriptor, 200).decode() == boot_id():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True
        return _now(folder) - os.fstat(descriptor).st_mtime > grace
    finally:
        os.close(descriptor)


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file server."""
    probe = folder / ".clock"
    probe.touch()
    return probe.stat().st_mtime


def forget_dead(folder: Path, grace: float) -> None:
    """Remove the files of workers that are gone."""
    for path in folder.glob("*.lock"):
        if is_dead(folder, path.stem, grace, missing=False):
            path.unlink(missing_ok=True)
