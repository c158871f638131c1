"""Where tracking goes: the default store, the refusal of folders, and printing a URI without its password."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from harness.errors import UserError, nearest

_HTTP = ("http", "https")
SQL_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SCHEMES = (*_HTTP, *SQL_PORTS, "sqlite", "databricks")
_SECRET = re.compile(
    r"([?&;](?:[^=&;\s]*(?:password|passwd|pwd|token|secret|key|auth|odbc_connect))=)[^&;\s]*", re.IGNORECASE
)
PROBE_SECONDS = 5
#: What MLflow's own clients read; it is used where `tracking.uri` says nothing.
VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Store:
    """`uri` for the client; `artifacts` is the file URI that new experiments get, None where the server decides."""

    uri: str
    artifacts: str | None

    @property
    def shown(self) -> str:
        """The URI without user names, passwords and tokens."""
        return redact(self.uri)

    @property
    def dialect(self) -> str:
        """Of its scheme, without the driver: "sqlite", "http", ..."""
        return _dialect(self.uri)


def redact(text: str) -> str:
    """One URI, or one argument with a URI, with whatever may be a login or a secret in it blotted out."""
    return without_logins(re.sub(r"://.*@", "://***@", text, flags=re.DOTALL))


def without_logins(text: str) -> str:
    """Any text, of several words, with the logins and secrets of the URIs in it blotted out."""
    return _SECRET.sub(r"\1***", re.sub(r"://\S*@", "://***@", text))


def scrub(text: str, uri: str) -> str:
    """One short line of an error's text, without logins and secrets of `uri` in any form in which they may be quoted."""
    secrets = {match[0].removeprefix(match[1]) for match in _SECRET.finditer(uri)}
    for login in re.findall(r"://(.*)@", uri, flags=re.DOTALL):
        secrets |= {login, *login.split(":", 1)}
    for part in sorted(secrets, key=len, reverse=True):
        for form in {part, quote(part, safe=""), unquote(part)} - {""}:
            text = text.replace(form, "***")
    line = " ".join(without_logins(text).split())
    return line if len(line) <= 200 else line[:197] + "..."


def default_store(runs_dir: Path) -> Store:
    """SQLite at `<runs_dir>/mlflow.db`, artifacts beside it."""
    return sqlite_store(Path(runs_dir).resolve() / "mlflow.db")


def sqlite_store(path: Path) -> Store:
    if any(mark in str(path) for mark in "?#%"):
        raise UserError(
            f"the tracking store {path} has one of ? # % in its path, which a database URI cannot hold: "
            "choose another folder or set tracking.uri="
        )
    return Store(f"sqlite:///{path}", (path.parent / "mlartifacts").as_uri())


def resolve_store(uri: str | None, runs_dir: Path) -> Store:
    """The store that `tracking.uri`, or else MLflow's own variable, names.

    Raises `UserError` for a folder, an unknown scheme, a database in memory, and what is no URI.
    """
    key, uri = (
        ("tracking.uri", uri.strip()) if uri and uri.strip() else (VARIABLE, os.environ.get(VARIABLE, "").strip())
    )
    if not uri:
        return default_store(runs_dir)
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else ""
    if scheme in {"", "file"} and uri != "databricks":
        folder = Path(re.sub(r"^file:(//[^/]*)?", "", uri) or ".").expanduser().resolve()
        raise UserError(
            f"{key}={redact(uri)} is a folder, which MLflow no longer writes to: "
            f"use tracking.uri=sqlite:///{folder / 'mlflow.db'}"
        )
    dialect = _dialect(uri)
    if dialect not in _SCHEMES:
        raise UserError(f"{key}={redact(uri)} has the unknown scheme '{scheme}'{nearest(dialect, _SCHEMES)}")
    if dialect == "sqlite":
        name = uri.partition(":///")[2]
        if not name or ":memory:" in name:
            raise UserError(
                f"{key}={redact(uri)} names no file, so nothing would be kept: use sqlite:///ABSOLUTE/PATH.db"
            )
        return sqlite_store(Path(name).expanduser().resolve())
    _check_server(key, uri)
    if dialect in SQL_PORTS:
        # Clients write artifacts themselves when they talk to a database; MLflow's default is the working folder.
        return Store(uri, (Path(runs_dir).resolve() / "mlartifacts").as_uri())
    return Store(uri, None)


def _dialect(uri: str) -> str:
    return uri.split(":", 1)[0].split("+", 1)[0].lower()


def _check_server(key: str, uri: str) -> None:
    """A password with one of / ? # in it ends the address early."""
    try:
        urlsplit(uri).port  # noqa: B018 - it is read when it is asked for
    except ValueError:
        raise UserError(f"{key}={redact(uri)} is no address; write / ? # @ in a login as %2F %3F %23 %40") from None


def reach(store: Store) -> None:
    """Knock at the port of a database server, whose drivers otherwise wait for minutes. Raises `OSError`."""
    if store.dialect not in SQL_PORTS:
        return
    parts = urlsplit(store.uri)
    if parts.hostname:
        socket.create_connection(
            (parts.hostname, parts.port or SQL_PORTS[store.dialect]), timeout=PROBE_SECONDS
        ).close()
