"""Show a runs folder's MLflow store: `python -m harness.tracking.ui [runs_dir]`, then http://127.0.0.1:5000."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import EXIT_CODE, UserError
from harness.tracking.uri import default_store


def command(runs_dir: Path, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """The command that serves the store of `runs_dir`. Raises `UserError` if there is none yet."""
    store = default_store(Path(runs_dir).expanduser())
    if not Path(store.uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"{Path(runs_dir).resolve()} holds no mlflow.db: run a study first, or name its runs folder")
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri, "--host", host, "--port", str(port)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the command and become it; returns only where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m harness.tracking.ui", description=__doc__)
    parser.add_argument("runs_dir", nargs="?", default="runs", type=Path, help="folder with mlflow.db (default: runs)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=5000, type=int)
    chosen = parser.parse_args(arguments)
    try:
        line = command(chosen.runs_dir, chosen.host, chosen.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    print(shlex.join(["mlflow", *line[3:]]), flush=True)
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    # In the place of this process, so that whatever stops it stops the server.
    os.execve(line[0], line, environment)


if __name__ == "__main__":
    sys.exit(main())
