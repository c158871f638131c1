"""A PostgreSQL database as the storage of searches: which URLs are accepted, and how it is opened and locked.

No message shows a password. SQLAlchemy is imported where it is used: a search over a journal does not wait for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import optuna

from harness.errors import UserError, nearest
from harness.tracking.uri import redact, scrub

if TYPE_CHECKING:
    import sqlalchemy

#: Seconds between two signs of life of a command on another host, and after how many without one it is taken for dead.
BEAT, GRACE = 15, 90
_SCHEMES = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
_HOW = "leave tune.storage empty for a journal file, or give postgresql://USER@HOST/DATABASE"


def checked_url(text: str) -> sqlalchemy.URL:
    """The parsed URL, with the driver psycopg unless another is named; raises `UserError` for what cannot be a storage."""
    import sqlalchemy

    scheme = text.split(":", 1)[0] if ":" in text else ""
    if scheme.startswith("sqlite"):
        why = "an SQLite file has no locks that hold between hosts and stalls with several workers"
        raise UserError(f"tune.storage={scheme}: {why}; {_HOW}")
    if scheme not in _SCHEMES or "://" not in text:
        shown = f"{scheme}:..." if scheme else "a text without a scheme"
        raise UserError(f"tune.storage: {shown} is no storage{nearest(scheme, _SCHEMES)}; {_HOW}")
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the text is not shown: it may hold a password
        raise UserError(f"tune.storage={scheme}://...: cannot be read as a URL; {_HOW}") from None
    if not url.database:
        raise UserError(f"tune.storage={redact(text)}: names no database; {_HOW}")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def open_database(text: str) -> optuna.storages.RDBStorage:
    """The database at the URL `text`, with Optuna's tables in it; raises `UserError` where it cannot be used."""
    import sqlalchemy

    url = checked_url(text)
    driver = url.get_dialect().driver
    if importlib.util.find_spec(driver) is None:
        how = "pip install 'few-step-harness[postgres]'" if driver == "psycopg" else "leave '+psycopg2' out of the URL"
        raise UserError(f"tune.storage={redact(text)}: the driver {driver} is not installed; {how}")
    options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, "application_name": "harness.tune"}}
    # Optuna formats the text.
    told = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    try:
        engine = sqlalchemy.create_engine(url, **options)
        # Two hosts that make the tables at the same time would trip over each other.
        with advisory(engine, "tables"):
            storage = optuna.storages.RDBStorage(told, options, heartbeat_interval=BEAT, grace_period=GRACE)
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ValueError) as error:
        raise UserError(f"tune.storage={redact(text)}: {_why(error, url)}") from None
    return storage


@contextmanager
def advisory(engine: sqlalchemy.Engine, what: str) -> Iterator[None]:
    """Hold the database's advisory lock called `what`; a connection that breaks lets go of it.

    The server ends a transaction that does nothing for two minutes, so a host that loses its power while it holds the
    lock does not stop the others for long.
    """
    from sqlalchemy import text

    key = int.from_bytes(hashlib.sha256(f"harness.tune {what}".encode()).digest()[:8], "big", signed=True)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '120s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield


def _why(error: Exception, url: sqlalchemy.URL) -> str:
    """The reason in one line, in words where it is a usual one."""
    cause: BaseException = error
    while (deeper := getattr(cause, "orig", None) or cause.__cause__) is not None and deeper is not cause:
        cause = deeper
    said = str(cause)
    if "password authentication failed" in said or "no password supplied" in said:
        return f"the server refuses user '{url.username}' with this password; check both, or keep them in ~/.pgpass"
    if "database" in said and "does not exist" in said:
        return f"the server has no database '{url.database}'; make it with createdb {url.database}"
    reason = scrub(said.strip().partition("\n")[0] or type(cause).__name__, url.render_as_string(hide_password=False))
    if isinstance(error, RuntimeError) and "schema" in said:
        return f"its tables are of another version of Optuna ({reason}); use another database"
    return f"cannot be used ({reason})"
