"""File locks between processes of one machine; the system lets one go when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import UserError

#: Seconds between two tries of who waits for a lock.
_PATIENCE = 1.0


@contextmanager
def waiting_for(path: Path, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path` inside the block; `tell` is called about once a second while somebody else has it.

    Raises `OSError` where the file cannot be made, for which the library would wait for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.1)
            break
        except Timeout:
            tell()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` inside the block, if nobody else has it: yields whether it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `<folder>/.lock`; raises `UserError` in one line with the holder's process id where another process has it."""
    path = Path(folder) / ".lock"
    # In a file of its own: whoever tries the lock truncates the lock's file.
    holder = path.with_name(".lock.pid")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from None
    with if_free(path) as held:
        if not held:
            process = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
            raise UserError(
                f"{folder} is in use by process {process}: wait for it or stop it, then run the command again"
            )
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
