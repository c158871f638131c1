"""Storage URLs: which are accepted, and how they are shown without the password."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from harness.errors import UserError, nearest
from harness.tracking.uri import redact

if TYPE_CHECKING:
    import sqlalchemy

_SCHEMES = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
_KEY = "tune.storage="
_QUOTES = "'\""
_HOW = "leave tune.storage empty for a journal file, or give postgresql://USER@HOST/DATABASE"


def checked_url(text: str) -> sqlalchemy.URL:
    """The parsed URL, with the driver psycopg unless another is named; raises `UserError` for what cannot be a storage."""
    import sqlalchemy

    scheme = text.split(":", 1)[0] if ":" in text else ""
    if scheme.startswith("sqlite"):
        raise UserError(
            f"tune.storage={scheme}: an SQLite file has no locks that hold between hosts and stalls with several "
            f"workers; {_HOW}"
        )
    if scheme not in _SCHEMES or "://" not in text:
        shown = f"{scheme}:..." if scheme else "a text without a scheme"
        raise UserError(f"tune.storage: {shown} is no storage{nearest(scheme, _SCHEMES)}; {_HOW}")
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the text is not shown: it may hold a password
        raise UserError(f"tune.storage={scheme}://...: cannot be read as a URL; {_HOW}") from None
    if not url.database:
        raise UserError(f"tune.storage={masked(url)}: names no database; {_HOW}")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def masked(url: sqlalchemy.URL) -> str:
    """The URL as it may be shown."""
    return redact(url.render_as_string(hide_password=False))


def hide_password(text: str, url: sqlalchemy.URL) -> str:
    """`text` of somebody else (a driver, a server) without the URL's password in any of its spellings."""
    given = [url.password, url.query.get("password")]
    for secret in (str(s) for s in given if s):
        for spelling in {secret, quote(secret, safe=""), quote_plus(secret)}:
            text = text.replace(spelling, "***")
    return redact(text)


def storage_in(arguments: list[str]) -> str:
    """The URL that the last argument `tune.storage=URL` gives, or "" without one."""
    given = [a.partition("=")[2].strip(_QUOTES) for a in arguments if a.lstrip("+").startswith(_KEY)]
    return given[-1] if given else ""


def masked_arguments(arguments: list[str]) -> list[str]:
    """A command line as it may be printed and kept: logins and secrets in URLs blotted out."""
    return [_masked_argument(argument) for argument in arguments]


def _masked_argument(argument: str) -> str:
    storage = storage_in([argument])
    if not storage:
        return redact(argument)
    try:
        return f"{_KEY}{masked(checked_url(storage))}"
    except UserError:  # it may hold a password all the same
        return f"{_KEY}..."
