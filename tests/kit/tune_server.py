"""A private PostgreSQL server for a test, from Debian's package or whatever is in the path."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest


def _binaries() -> Path | None:
    """The folder of the newest server that Debian's package installed, or of one in the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[4]))
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


def why_not() -> str | None:
    """Why no server can be started here, or None where one can."""
    if _binaries() is None:
        return "no PostgreSQL server is installed here (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and shutil.which("runuser") is None:
        return "PostgreSQL does not run as root, and there is no runuser to start it as another user"
    return None


def free_port() -> int:
    """A port that nobody listens on now, and that the system gives to nobody who connects to somewhere."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Server:
    """Where it listens, and who may come in."""

    folder: Path
    port: int
    password: str = "se{cret/wörd"

    def url(self, password: str | None = None, database: str = "postgres", user: str = "tuner") -> str:
        """An URL for `tune.storage`."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def control(self, *words: str) -> None:
        """`pg_ctl` on this server, for example "restart"."""
        _quietly([_binaries() / "pg_ctl", "-D", self.folder / "data", "-w", "-t", "60", *words])


@contextmanager
def postgres() -> Iterator[Server]:
    """A server on a free port of the loopback address; skips, with a reason, where none can be started.

    Its files are not in pytest's folders, which each session closes to other users, such as the one that the server runs as.
    """
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed (pip install -e '.[postgres]')")
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        yield from _served(Path(name))


def _served(folder: Path) -> Iterator[Server]:
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
    server = Server(folder, free_port())
    (folder / "password").write_text(server.password, encoding="utf-8")
    (folder / "password").chmod(0o644)
    _quietly(
        [_binaries() / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "scram-sha-256", "--no-sync", "--locale=C",
         "-E", "UTF8", f"--pwfile={folder / 'password'}"]
    )  # fmt: skip
    options = f"-p {server.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    server.control("-l", str(folder / "log"), "-o", options, "start")
    try:
        yield server
    finally:
        server.control("-m", "immediate", "stop")


def _quietly(command: list[Any]) -> None:
    """Run it, not as root: PostgreSQL refuses that."""
    words = [str(word) for word in command]
    words = ["runuser", "-u", "nobody", "--", *words] if os.getuid() == 0 else words
    # Not to a pipe: the server, which goes on, would hold it open.
    nothing = subprocess.DEVNULL
    done = subprocess.run(words, stdout=nothing, stderr=nothing, stdin=nothing, cwd="/", check=False, timeout=90)
    assert done.returncode == 0, " ".join(words)
