"""The SQLite store of tracking is made whole or not at all: two at once, kills, what others left half made, full disks."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.tracking import mlflow_client
from harness.tracking.sqlite import make_whole
from harness.tracking.uri import default_store

_ROOT = Path(__file__).parents[2]
_TABLES = ["CREATE TABLE experiments (name TEXT)", "CREATE TABLE runs (name TEXT)"]
_VERSION = ["CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('new')"]


def _run(path: Path, lines: list[str]) -> None:
    with sqlite3.connect(path) as base:
        for line in lines:
            base.execute(line)
    base.close()


def _make(uri: str, made: list[str] | None = None, pause: float = 0.0) -> None:
    """A store of two tables and a mark, in the place of MLflow's hundred steps."""
    path = Path(uri.removeprefix("sqlite:///"))
    _run(path, _TABLES)
    time.sleep(pause)
    _run(path, [*_VERSION, "CREATE TABLE fresh (x)"])
    if made is not None:
        made.append(uri)


def _is_fresh(path: Path) -> bool:
    with sqlite3.connect(path) as base:
        return bool(base.execute("SELECT name FROM sqlite_master WHERE name = 'fresh'").fetchall())


def _ensure(path: Path, make=_make) -> None:
    make_whole(path, make, lambda: "new")


def test_one_makes_it_and_the_others_wait(tmp_path):
    path, made, seen = tmp_path / "runs" / "mlflow.db", [], []

    def begin() -> None:
        _ensure(path, functools.partial(_make, made=made, pause=0.2))
        seen.append(_is_fresh(path))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and seen == [True] * 4
    assert {p.name for p in path.parent.iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}


def test_one_that_fails_leaves_nothing_in_the_way(tmp_path):
    path = tmp_path / "mlflow.db"

    def full(uri: str) -> None:
        _run(Path(uri.removeprefix("sqlite:///")), _TABLES)
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        _ensure(path, full)
    assert not list(tmp_path.glob("*mlflow.db")) and not list(tmp_path.glob("*.new"))
    _ensure(path)
    assert _is_fresh(path)


HALF = {
    "no version": _TABLES,
    "an empty version": [*_TABLES, _VERSION[0]],
    "a version on the way": [*_TABLES, _VERSION[0], "INSERT INTO alembic_version VALUES ('old')"],
    "a temporary table": [*_TABLES, *_VERSION, "CREATE TABLE _alembic_tmp_runs (name TEXT)"],
    "one table": [*_TABLES[:1], "INSERT INTO experiments VALUES ('Default')"],
}


@pytest.mark.parametrize("lines", HALF.values(), ids=HALF)
def test_a_half_made_one_is_moved_aside_and_made_again(tmp_path, lines, capsys):
    path = tmp_path / "mlflow.db"
    _run(path, lines)
    before = path.read_bytes()
    _ensure(path)
    (aside,) = tmp_path.glob("mlflow.db.half-made-*")
    assert _is_fresh(path) and aside.read_bytes() == before
    said = capsys.readouterr().err
    assert said == f"{path} was half made and empty; it is {aside.name} now, and a new one is made\n"


HOLDS = {
    "whole": [*_TABLES, *_VERSION],
    "a run": [*_TABLES, "INSERT INTO runs VALUES ('mine')"],
    "a run, and an upgrade that was killed": [*HALF["a temporary table"], "INSERT INTO runs VALUES ('mine')"],
    "an experiment": [*HALF["a version on the way"], "INSERT INTO experiments VALUES ('Default'), ('mine')"],
    "tables of somebody else": ["CREATE TABLE studies (x)", *_VERSION],
}


@pytest.mark.parametrize("lines", HOLDS.values(), ids=HOLDS)
def test_one_that_holds_something_is_left_alone(tmp_path, lines, capsys):
    path = tmp_path / "mlflow.db"
    _run(path, lines)
    before = path.read_bytes()
    _ensure(path)
    assert path.read_bytes() == before and capsys.readouterr().err == ""


def test_an_empty_file_is_none(tmp_path, capsys):
    (tmp_path / "mlflow.db").touch()
    _ensure(tmp_path / "mlflow.db")
    assert _is_fresh(tmp_path / "mlflow.db") and capsys.readouterr().err == ""


def test_a_kill_while_mlflow_makes_its_tables_costs_nothing(tmp_path):
    """Also what MLflow itself leaves when it is killed there is recognised."""
    store = default_store(tmp_path)
    path, fresh = tmp_path / "mlflow.db", tmp_path / ".mlflow.db.new"
    code = "import sys; from harness.tracking import mlflow_client as m, uri; m.connect(uri.default_store(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=_ROOT, env=os.environ | {"PYTHONPATH": str(_ROOT)}
    )
    until = time.monotonic() + 60
    while not (fresh.exists() and fresh.stat().st_size > 100_000):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert fresh.exists() and not path.exists()
    # As if it had been made in its place.
    for end in ("", "-journal"):
        if Path(f"{fresh}{end}").exists():
            os.replace(f"{fresh}{end}", f"{path}{end}")
    assert mlflow_client.connect(store).search_experiments()[0].name == "Default"
    # Its journal, where there was one at that moment, went along.
    aside = [path for path in tmp_path.glob("mlflow.db.half-made-*") if not path.name.endswith("-journal")]
    assert not fresh.exists() and len(aside) == 1


# ---- what a user is told ----------------------------------------------------------------------------------------------
def test_a_store_that_cannot_be_written_says_so_in_one_line(tmp_path, monkeypatch):
    store, connect = default_store(tmp_path), sqlite3.connect
    _ensure(tmp_path / "mlflow.db")

    def read_only(path: object, **more: object) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, **more)

    monkeypatch.setattr("harness.tracking.mlflow_client.make_whole", lambda *_: None)
    monkeypatch.setattr("harness.tracking.mlflow_client.sqlite3.connect", read_only)
    with pytest.raises(UserError) as caught:
        mlflow_client.connect(store)
    assert str(caught.value) == (
        f"tracking at sqlite:///{tmp_path}/mlflow.db cannot be used (attempt to write a readonly database): check that its "
        "folder can be written to and has space, or set tracking.uri= to another store or tracking.enabled=false"
    )


def test_a_disk_that_is_full_while_it_is_made_says_so_in_one_line(tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    def full(mlflow: object, uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).touch()
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError as error:
            raise MlflowException(
                "a long text\n[SQL: INSERT INTO x]\n(Background on this error at: https://)"
            ) from error

    monkeypatch.setattr("harness.tracking.mlflow_client._client", full)
    with pytest.raises(
        UserError, match=r"cannot be used \(database or disk is full\): check that its folder can be written"
    ):
        mlflow_client.connect(default_store(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] in ([], [".mlflow.db.lock"])
