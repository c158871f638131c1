"""Files that are being written, beside the place that they are for: what a kill leaves of them, and who may remove it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

_PART = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-[0-9a-f]{6}\.part")
_STALE = 24 * 3600.0  # seconds after which nobody is still writing a file


def part_of(path: Path) -> Path:
    """A new name for what will be `path`; it says which process of which machine writes."""
    return path.parent / f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.part"


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def sweep(paths: Iterable[Path]) -> None:
    """Remove those of the files that are such a part and that nobody writes: their process is dead, or they are a day old."""
    import psutil

    for path in paths:
        if found := _PART.fullmatch(path.name):
            with contextlib.suppress(OSError):  # somebody else swept it, or may
                is_dead = found[1] == _host() and not psutil.pid_exists(int(found[2]))
                if is_dead or time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
