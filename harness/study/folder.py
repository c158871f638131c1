"""A study's folder holds the results of one configuration; those of another one are put aside before any work."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

from harness.errors import UserError
from harness.jobs.locks import waiting_for
from harness.parts import sweep
from harness.store import read_json, write_json
from harness.study.cells import Cell, config_key
from harness.study.session import Session

#: Files of a former configuration of the same study move to `earlier/<its key>` instead of being written over.
_RESULTS = (
    "results.parquet", "report.md", "report.html", "table.tex", "config.yaml", "protocol.json", "figures", "samples",
)  # fmt: skip


def make_folder(session: Session) -> None:
    """Make the study's folder; raises `UserError` where that is not possible."""
    try:
        session.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"runs_dir={session.cfg.runs_dir}: cannot make {session.folder} ({error.strerror}); choose another folder"
        ) from error


def sweep_parts(folder: Path, cache: Path) -> None:
    """Remove what writers that were killed left unfinished in a study's folder and in the cache."""
    sweep(folder.glob("**/.*.part"))
    for depth in ("", "*/", "*/*/"):  # no deeper: it may be a folder with other things in it
        sweep(cache.glob(f"{depth}.*.part"))


def claim(session: Session, cells: list[Cell]) -> str:
    """Make the folder that of this configuration, where it is not; returns the study's key in tracking.

    Several processes may ask at the same time.
    """
    path, config = session.folder / "state.json", config_key(session, cells)
    with waiting_for(session.folder / ".state.lock"):
        state = read_json(path) if path.exists() else None
        if state is not None and state["config"] != config:
            _put_aside(session, state["key"], "another configuration ran here before; its results are in")
            state = None
        if state is None:
            state = {"key": f"{session.cfg.study.name}-{uuid.uuid4().hex[:12]}", "config": config}
            write_json(path, state)
    return state["key"]


def is_current(session: Session, cells: list[Cell]) -> bool:
    """Whether the results in the folder are of this configuration."""
    path = session.folder / "state.json"
    return path.exists() and read_json(path)["config"] == config_key(session, cells)


def put_aside(session: Session) -> None:
    """Move the results that are there to `earlier/`: what comes next gets a key of its own, in tracking too."""
    path = session.folder / "state.json"
    with waiting_for(session.folder / ".state.lock"):
        if path.exists():
            _put_aside(session, read_json(path)["key"], "the results until now are kept in")
            path.unlink()


def _put_aside(session: Session, key: str, words: str) -> None:
    aside = session.folder / "earlier" / key
    aside.mkdir(parents=True, exist_ok=True)
    for name in _RESULTS:
        if (session.folder / name).exists():
            os.replace(session.folder / name, aside / name)
    print(f"{words} {aside}", file=sys.stderr)


def known_protocol(session: Session) -> str | None:
    """The identity of what scores depend on, known once the judge was ready for this configuration."""
    path = session.folder / "protocol.json"
    return read_json(path)["id"] if path.exists() else None
