"""The SQLite store of tracking: made under another name and put in its place whole, so that nobody meets half of it.

MLflow makes its tables in a hundred steps. A kill or a full disk in between, or a second process that begins as well, used
to leave a file that no later command could open.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.jobs.locks import waiting_for
from harness.tracking.uri import PROBE_SECONDS

_JOURNALS = ("-journal", "-wal", "-shm")
_HOLD, _VERSION = {"runs", "experiments"}, "alembic_version"


def make_whole(path: Path, make: Callable[[str], object], head: Callable[[], str | None]) -> None:
    """Let `make(uri)` make the store at `path` where it is not there; of several processes one does, the others wait.

    One that is half made and holds nothing is moved aside, and a line says so. `head` is asked for the version of the tables
    of a store that holds nothing. Raises `OSError`, `sqlite3.Error` and what `make` raises.
    """
    if _is_whole(path, head):
        return
    with waiting_for(path.with_name(f".{path.name}.lock")):
        if _is_whole(path, head):
            return
        if path.exists() and path.stat().st_size:
            _move_aside(path)
        fresh = path.with_name(f".{path.name}.new")
        try:
            _remove(fresh)  # of a process that was killed
            make(f"sqlite:///{fresh}")
            os.replace(fresh, path)
        finally:
            _remove(fresh)


def _is_whole(path: Path, head: Callable[[], str | None]) -> bool:
    """Whether there is a store that is MLflow's to open: one that holds something, one of this version, one of other tables."""
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(path, timeout=PROBE_SECONDS)) as base:
        tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:  # the first that MLflow makes
            return bool(tables)
        rows = {name: base.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in _HOLD & tables}
        if rows.get("runs") or rows["experiments"] > 1:
            return True
        left_over = any(name.startswith("_alembic_tmp_") for name in tables)
        version = base.execute("SELECT version_num FROM alembic_version").fetchall() if _VERSION in tables else []
        return version == [(head(),)] and not left_over


def _move_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.half-made-{time.strftime('%Y%m%d-%H%M%S')}")
    for end in ("", *_JOURNALS):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{aside}{end}")
    print(f"{path} was half made and empty; it is {aside.name} now, and a new one is made", file=sys.stderr, flush=True)


def _remove(path: Path) -> None:
    for end in ("", *_JOURNALS):
        Path(f"{path}{end}").unlink(missing_ok=True)
