"""Show a runs folder's MLflow store: `python -m harness.tracking.ui [runs_dir]`, then open one of the links that it prints."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import socket
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import EXIT_CODE, UserError
from harness.tracking import link
from harness.tracking.uri import default_store

#: How many are tried.
_PORTS = 20


def command(runs_dir: Path, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """The command that serves the store of `runs_dir`. Raises `UserError` if there is none yet."""
    store = default_store(Path(runs_dir).expanduser())
    if not Path(store.uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"{Path(runs_dir).resolve()} holds no mlflow.db: run a study first, or name its runs folder")
    place = ["--backend-store-uri", store.uri, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "ui", *place, "--workers", "1"]


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that nothing listens at. Raises `UserError` where twenty are taken."""
    for port in range(first, first + _PORTS):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
    raise UserError(f"--port {first}: it and the next {_PORTS - 1} are taken or not allowed; name another one")


def experiments(store: Path) -> list[tuple[str, str]]:
    """(id, name) of the experiments in a SQLite store that hold runs, the latest first."""
    query = (
        "SELECT e.experiment_id, e.name FROM experiments e JOIN runs r ON r.experiment_id = e.experiment_id "
        "GROUP BY e.experiment_id ORDER BY max(r.start_time) DESC"
    )
    with contextlib.closing(sqlite3.connect(store)) as base:
        return [(str(key), name) for key, name in base.execute(query)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the command and become it; returns only where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m harness.tracking.ui", description=__doc__)
    parser.add_argument("runs_dir", nargs="?", default="runs", type=Path, help="folder with mlflow.db (default: runs)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=5000, type=int)
    chosen = parser.parse_args(arguments)
    try:
        port = free_port(chosen.host, chosen.port)
        line = command(chosen.runs_dir, chosen.host, port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    if port != chosen.port:
        print(f"port {chosen.port} is taken: {port} is used")
    for key, name in experiments(Path(line[5].removeprefix("sqlite:///"))):
        print(f"{name}: {link.charts(f'http://{chosen.host}:{port}', key)}")
    print(shlex.join(["mlflow", *line[3:]]), flush=True)
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    # In the place of this process, so that whatever stops it stops the server.
    os.execve(line[0], line, environment)


if __name__ == "__main__":
    sys.exit(main())
