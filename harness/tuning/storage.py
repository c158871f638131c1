"""Where the trials of a tuning are kept: a journal file in its folder, or a PostgreSQL database.

Optuna's storages do the work. What is added: a lock around each claim, an identity that keeps two configurations from
sharing a study, and errors in one line that never show a password.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages.journal import JournalStorage

from harness.config.compose import flatten
from harness.errors import UserError
from harness.tuning.journal import WholeLines, held, what_is_wrong
from harness.tuning.urls import checked_url, hide_password, masked

if TYPE_CHECKING:
    import sqlalchemy

    from harness.tuning.load import LoadedTune

#: Seconds between two signs of life of a worker on another host, and after how many without one it is taken for dead.
BEAT, GRACE = 15, 90
#: Names of what a study in a storage knows of itself.
IDENTITY, CONFIG, CREATED = "identity", "config", "created"
#: Of Optuna's tables, the one that is made when all others are there.
_LAST_TABLE = "alembic_version"


def quiet_optuna() -> None:
    """Optuna's own lines and its warnings about experimental arguments say nothing that our progress does not."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    warnings.filterwarnings("ignore", module=r"optuna(\..*)?$")


def is_away(error: Exception) -> bool:
    """Whether a database that was there before does not answer: it may be back soon."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return True
    return type(error).__module__ == "sqlalchemy.exc" and type(error).__name__ in ("OperationalError", "InterfaceError")


@dataclass(frozen=True)
class Opened:
    """A study in its storage, and what the storage offers besides Optuna's interface."""

    study: optuna.Study
    storage: optuna.storages.BaseStorage
    #: A context in which no other process counts, reaps or claims.
    alone: Callable[[], AbstractContextManager[None]]
    #: A database, which hosts may share without sharing the tune folder, and which keeps the workers' heartbeats.
    database: bool

    @cached_property
    def _study_id(self) -> int:
        return self.storage.get_study_id_from_name(self.study.study_name)

    def trial_id(self, number: int) -> int:
        """The storage's own identity of a trial of this study."""
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def beat(self, number: int) -> None:
        """Tell the storage that this trial is being worked on."""
        if self.database:
            self.storage.record_heartbeat(self.trial_id(number))

    def fail_stale(self) -> None:
        """Fail the trials of workers that the storage has not heard of for too long."""
        if self.database:
            optuna.storages.fail_stale_trials(self.study)

    def end(self, number: int, attributes: dict[str, Any]) -> None:
        """Fail a running trial, with the attributes that say why; one that has ended meanwhile is left as it is."""
        trial_id = self.trial_id(number)
        try:
            for key, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, key, value)
            self.storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return


def study_name(loaded: LoadedTune) -> str:
    """Name of the study in the storage: that of the study it tunes, its task, and its own."""
    return f"{loaded.base.cfg.study.name}/{loaded.cfg.name}"


def open_study(loaded: LoadedTune, directions: list[str], beat: int = BEAT, grace: int = GRACE) -> Opened:
    """Open (or make) the study; raises `UserError` where the storage cannot be reached, read or is of another study."""
    quiet_optuna()
    url = loaded.cfg.storage
    opened = _open_postgres(loaded, directions, beat, grace) if url else _open_journal(loaded, directions)
    with opened.alone():
        _check_identity(loaded, opened.study)
    return opened


def _check_identity(loaded: LoadedTune, study: optuna.Study) -> None:
    known = study.user_attrs
    content = json.loads(json.dumps(flatten(loaded.identity_parts), default=str))
    if IDENTITY not in known:
        study.set_user_attr(CONFIG, content)
        study.set_user_attr(CREATED, time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        study.set_user_attr(IDENTITY, loaded.identity)  # last: with it the others are known to be there
    elif known[IDENTITY] != loaded.identity:
        differing = sorted(k for k in {*known.get(CONFIG, {}), *content} if _at(known, k) != content.get(k))
        what = ", ".join(f"{k} was {_at(known, k)!r} and is {content.get(k)!r}" for k in differing[:3])
        raise UserError(
            f"the storage holds a study '{study.study_name}' of another configuration"
            f"{f' ({what})' if what else ''}; give this one a name of its own with tune.name=NAME"
        )


def _at(known: dict[str, Any], key: str) -> Any:
    return known.get(CONFIG, {}).get(key)


# ---- the journal ------------------------------------------------------------------------------------------------------
def _open_journal(loaded: LoadedTune, directions: list[str]) -> Opened:
    path = loaded.folder / "journal.log"
    name = study_name(loaded)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(path.with_name("claim.lock")):
            storage = JournalStorage(WholeLines(path))
            others = [s.study_name for s in storage.get_all_studies() if s.study_name != name]
            if others:
                raise UserError(
                    f"{path} holds the study '{others[0]}', not '{name}'; move it away, or use tune.name=NAME"
                )
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another folder with runs_dir=DIR") from None
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        raise UserError(f"{path}{what_is_wrong(path, error)}; move it away to begin anew") from None
    return Opened(study, storage, lambda: held(path.with_name("claim.lock")), database=False)


# ---- PostgreSQL -------------------------------------------------------------------------------------------------------
def _open_postgres(loaded: LoadedTune, directions: list[str], beat: int, grace: int) -> Opened:
    import sqlalchemy

    url = checked_url(loaded.cfg.storage)
    driver = url.get_dialect().driver
    if importlib.util.find_spec(driver) is None:
        how = "pip install 'few-step-harness[postgres]'" if driver == "psycopg" else "leave '+psycopg2' out of the URL"
        raise UserError(f"tune.storage={masked(url)}: the driver {driver} is not installed; {how}")
    name = study_name(loaded)
    options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, "application_name": "harness.tune"}}
    # Optuna formats the text.
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    times = {"heartbeat_interval": beat, "grace_period": grace}
    try:
        engine = sqlalchemy.create_engine(url, **options)
        # Two hosts that make the tables at the same time would trip over each other.
        with _advisory(engine, "tables"):
            if not sqlalchemy.inspect(engine).has_table(_LAST_TABLE):
                optuna.storages.RDBStorage(text, engine_kwargs=options).engine.dispose()
        engine.dispose()
        storage = optuna.storages.RDBStorage(text, engine_kwargs=options, skip_table_creation=True, **times)
        cached = optuna.storages.get_storage(storage)
        study = optuna.create_study(storage=cached, study_name=name, directions=directions, load_if_exists=True)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ValueError) as error:
        raise UserError(f"tune.storage={masked(url)}: {_why(error, url)}") from None
    return Opened(study, cached, lambda: _advisory(storage.engine, f"claim {name}"), database=True)


@contextmanager
def _advisory(engine: sqlalchemy.Engine, what: str) -> Iterator[None]:
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
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = hide_password(lines[0] if lines else type(cause).__name__, url)
    if "password authentication failed" in str(cause) or "no password supplied" in str(cause):
        return f"the server refuses user '{url.username}' with this password; check both, or keep them in ~/.pgpass"
    if "database" in str(cause) and "does not exist" in str(cause):
        return f"the server has no database '{url.database}'; make it with createdb {url.database}"
    if isinstance(error, RuntimeError) and "schema" in str(error):
        return f"its tables are of another version of Optuna ({reason}); use another database"
    return f"cannot be used ({reason})"
