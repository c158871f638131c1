"""The connection to MLflow: imported late and silently, probed with short time limits, its errors sorted in two."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.tracking.outbox import Down, Rejected
from harness.tracking.sqlite import make_whole
from harness.tracking.uri import PROBE_SECONDS, SQL_PORTS, Store, reach, scrub

_DOWN_CODES = {
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "CANCELLED",
}
# A study must not wait minutes for each call to a server that is gone, which is MLflow's default (7 retries).
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_PROBE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def import_mlflow() -> Any:
    """The package, with telemetry off and without its log lines and progress bars."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ImportError as error:
        raise UserError(f"tracking needs MLflow ({error}): pip install mlflow, or set tracking.enabled=false") from None
    # MLflow logs whole tracebacks for errors that it also raises; those reach the user as one line from here.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def service_errors() -> tuple[type[BaseException], ...]:
    """What a call to MLflow raises when the service, the network, the disk or the request is at fault."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    return (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)


def reason(error: BaseException, uri: str) -> str:
    """Why a call failed, in a few words, without the login of `uri`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        if isinstance(seen, socket.gaierror):
            return "unknown host"
        if isinstance(seen, TimeoutError):
            return "no answer in time"
        if isinstance(seen, ConnectionError):
            return "connection lost"
        if isinstance(seen, sqlite3.Error):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return scrub(str(error) or type(error).__name__, uri)


def _open_directly(store: Store, mlflow: Any) -> None:
    """Open the database once without MLflow, which would try a wrong path or password again for minutes."""
    reach(store)
    if store.dialect == "sqlite":
        path = Path(store.uri.removeprefix("sqlite:///"))
        make_whole(path, lambda uri: _client(mlflow, uri), lambda: _newest_tables(mlflow))
        with contextlib.closing(sqlite3.connect(path, timeout=PROBE_SECONDS)) as connection:
            connection.execute("PRAGMA user_version = 0")  # it writes
    elif store.dialect in SQL_PORTS:
        import sqlalchemy

        engine = sqlalchemy.create_engine(store.uri)
        engine.connect().close()
        engine.dispose()


def _client(mlflow: Any, uri: str) -> Any:
    """A client of the store at `uri`, which has answered; a database has its tables then."""
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _newest_tables(mlflow: Any) -> str | None:
    """The version of the tables that this MLflow makes."""
    from alembic.script import ScriptDirectory  # MLflow's, and as slow to import

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()


def connect(store: Store) -> Any:
    """An `MlflowClient` whose store answers; a new SQLite store gets its tables here, before anything forks.

    Raises `UserError` in one line, within about ten seconds, if nothing answers.
    """
    mlflow = import_mlflow()
    fault, check = "does not answer", "check that it is up"
    if store.dialect == "sqlite":
        fault, check = "cannot be used", "check that its folder can be written to and has space"
    failures: tuple[type[BaseException], ...] = (*service_errors(), sqlite3.Error, ImportError)
    try:
        _open_directly(store, mlflow)
        with _environment(_PROBE):
            return _client(mlflow, store.uri)
    except failures as error:
        if "out-of-date database schema" in str(error):
            way_out = f"it was made by another version of MLflow: back it up and run 'mlflow db upgrade {store.shown}'"
            raise UserError(f"the tracking store {store.shown} cannot be used: {way_out}") from None
        way_out = f"{check}, or set tracking.uri= to another store or tracking.enabled=false"
        raise UserError(f"tracking at {store.shown} {fault} ({reason(error, store.uri)}): {way_out}") from None


@contextlib.contextmanager
def sorted_errors(client: Any, store: Store) -> Iterator[None]:
    """Raise `Down` where the service did not answer, `Rejected` where it refused the call or a file is unreadable."""
    try:
        yield
    except service_errors() as error:
        why = reason(error, store.uri)
        code = getattr(error, "error_code", None)
        if code in _DOWN_CODES:
            raise Down(why) from None
        if code not in (None, "INTERNAL_ERROR"):
            raise Rejected(why) from None
        # A fault inside the service and a dead line carry the same code: ask for something else to tell them apart.
        try:
            with _environment(_PROBE):
                client.search_experiments(max_results=1)
        except service_errors():
            raise Down(why) from None
        raise Rejected(why) from None
