"""Where the trials of a search are kept: a journal file in its folder, or a PostgreSQL database.

Optuna's storages do the work. What is added: a lock around counting and asking, an identity that keeps two configurations
from sharing a study, and errors in one line that never show a password. Only the command itself opens a storage.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalStorage

from harness.config.compose import flatten
from harness.errors import UserError, nearest
from harness.jobs.locks import waiting_for
from harness.search.loaded import LoadedTune
from harness.store import cut_torn_line
from harness.tracking.uri import redact, scrub

if TYPE_CHECKING:
    import sqlalchemy

#: Seconds between two signs of life of a command on another host, and after how many without one it is taken for dead.
BEAT, GRACE = 15, 90
_SCHEMES = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
_HOW = "leave tune.storage empty for a journal file, or give postgresql://USER@HOST/DATABASE"
#: Names of what a study in a storage knows of itself.
IDENTITY, CONFIG, CREATED = "identity", "config", "created"
_AWAY = 60.0  # seconds for which a database that was open may be away
_P = ParamSpec("_P")
_R = TypeVar("_R")


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


def patient(action: Callable[_P, _R]) -> Callable[_P, _R]:
    """Do it again for a minute where a database is away: nothing may be lost to a restart of the server.

    What it is put on must bear being done twice, since the answer may have been lost and not the question.
    """

    @functools.wraps(action)
    def patiently(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        until = time.monotonic() + _AWAY
        while True:
            try:
                return action(*args, **kwargs)
            except Exception as error:
                if not is_away(error) or time.monotonic() > until:
                    raise
                time.sleep(1)

    return patiently


@dataclass(frozen=True)
class Store:
    """A study in its storage, and what the storage offers besides Optuna's interface."""

    study: optuna.Study
    storage: optuna.storages.BaseStorage
    #: A context in which no other command counts and asks.
    alone: Callable[[], AbstractContextManager[None]]
    #: The database itself, which hosts may share without sharing the tune folder; it keeps heartbeats.
    database: optuna.storages.RDBStorage | None = None

    @cached_property
    def _study_id(self) -> int:
        return self.storage.get_study_id_from_name(self.study.study_name)

    def trial_id(self, number: int) -> int:
        """The storage's own identity of a trial of this study."""
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def trial(self, number: int) -> optuna.trial.FrozenTrial:
        """What the storage says of a trial now."""
        return self.storage.get_trial(self.trial_id(number))

    def beat(self, number: int) -> None:
        """Tell the database that this trial is being worked on."""
        if self.database is not None:
            self.database.record_heartbeat(self.trial_id(number))

    def end(self, number: int, attributes: dict[str, Any], state: optuna.trial.TrialState) -> None:
        """End a running trial without values, with the attributes that say why; one that has ended is left as it is."""
        trial_id = self.trial_id(number)
        try:
            for key, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, key, value)
            self.storage.set_trial_state_values(trial_id, state)
        except optuna.exceptions.UpdateFinishedTrialError:
            return


def open_store(loaded: LoadedTune) -> Store:
    """Open (or make) the study; raises `UserError` where the storage cannot be reached, read or is of another study."""
    quiet_optuna()
    store = _open_database(loaded) if loaded.cfg.storage else _open_journal(loaded)
    with store.alone():
        _check_identity(loaded, store.study)
    return store


def _study_in(storage: optuna.storages.BaseStorage, loaded: LoadedTune) -> optuna.Study:
    return optuna.create_study(
        storage=storage, study_name=loaded.name, directions=loaded.directions, load_if_exists=True
    )


def _check_identity(loaded: LoadedTune, study: optuna.Study) -> None:
    known = study.user_attrs
    content = json.loads(json.dumps(flatten(loaded.identity_parts), default=str))
    if IDENTITY not in known:
        study.set_metric_names(list(loaded.cfg.objectives))
        study.set_user_attr(CONFIG, content)
        study.set_user_attr(CREATED, time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        study.set_user_attr(IDENTITY, loaded.identity)  # last: with it the others are known to be there
    elif known[IDENTITY] != loaded.identity:
        before = known.get(CONFIG, {})
        differing = sorted(k for k in {*before, *content} if before.get(k) != content.get(k))
        what = ", ".join(f"{k} was {before.get(k)!r} and is {content.get(k)!r}" for k in differing[:3])
        raise UserError(
            f"the storage holds a study '{study.study_name}' of another configuration"
            f"{f' ({what})' if what else ''}; give this one a name of its own with tune.name=NAME"
        )


# ---- the journal ------------------------------------------------------------------------------------------------------
class WholeLines:
    """What Optuna's journal wants of a lock: one that the system lets go of when its holder dies; Optuna's own do not.

    Whoever gets it takes off a last line that a killed writer left torn, which was never acknowledged to anybody.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = FileLock(journal.with_name(journal.name + ".flock"), poll_interval=0.005)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        with open(self._journal, "rb+") as handle:
            cut_torn_line(handle)
        return True

    def release(self) -> None:
        self._lock.release()


def _open_journal(loaded: LoadedTune) -> Store:
    path = loaded.folder / "journal.log"
    asking = path.with_name("ask.lock")
    try:
        with waiting_for(asking):
            lock: Any = WholeLines(path)  # it has the methods of Optuna's
            storage = JournalStorage(JournalFileBackend(str(path), lock))
            others = [s.study_name for s in storage.get_all_studies() if s.study_name != loaded.name]
            if others:
                raise UserError(
                    f"{path} holds the study '{others[0]}', not '{loaded.name}'; move it away, or use tune.name=NAME"
                )
            study = _study_in(storage, loaded)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another folder with runs_dir=DIR") from None
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        lines = enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        bad = next((f", line {number}," for number, line in lines if not line.startswith("{")), "")
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{path}{bad} is not the journal of a study ({why}); move it away to begin anew") from None
    return Store(study, storage, lambda: waiting_for(asking))


# ---- the database -----------------------------------------------------------------------------------------------------
def checked_url(text: str) -> sqlalchemy.URL:
    """The parsed URL, with the driver psycopg unless another is named; raises `UserError` for what cannot be a storage."""
    import sqlalchemy

    scheme = text.split(":", 1)[0] if ":" in text else ""
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


def _open_database(loaded: LoadedTune) -> Store:
    import sqlalchemy

    text = loaded.cfg.storage
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
        with _advisory(engine, "harness.tune tables"):
            database = optuna.storages.RDBStorage(told, options, heartbeat_interval=BEAT, grace_period=GRACE)
        engine.dispose()
        cached = optuna.storages.get_storage(database)
        study = _study_in(cached, loaded)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ValueError) as error:
        raise UserError(f"tune.storage={redact(text)}: {_why(error, url)}") from None
    return Store(study, cached, lambda: _advisory(database.engine, f"harness.tune {loaded.name}"), database)


@contextmanager
def _advisory(engine: sqlalchemy.Engine, what: str) -> Iterator[None]:
    """Hold the database's advisory lock called `what`; a connection that breaks lets go of it.

    The server ends a transaction that does nothing for two minutes, so a host that loses its power while it holds the
    lock does not stop the others for long.
    """
    from sqlalchemy import text

    with engine.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '120s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:what, 0))"), {"what": what})
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
