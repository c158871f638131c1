"""Where trials are kept: what a killed writer leaves in the journal, whose study it is, and which URLs are storages."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from harness.errors import UserError
from harness.search.storage import CREATED, IDENTITY, Store, WholeLines, checked_url, open_store
from harness.tracking.uri import scrub
from tests.kit.tune_kit import make_config, make_loaded


def _open(folder: Path, storage: str = "", **more: Any) -> Store:
    cfg = make_config()
    cfg.storage = storage
    return open_store(make_loaded(folder, cfg, folder=folder, **more))


# ---- the journal ------------------------------------------------------------------------------------------------------
def test_a_torn_last_line_is_taken_off_and_nothing_else(tmp_path):
    store = _open(tmp_path)
    for k in range(3):
        store.study.add_trial(optuna.create_trial(value=float(k)))
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    for torn in (b'{"op_code":4,"study_id":0,"st', b"{", b"x" * 9000):
        path.write_bytes(whole + torn)  # as a process leaves it that is killed while it writes
        again = _open(tmp_path)
        assert [t.value for t in again.study.trials] == [0.0, 1.0, 2.0]
        again.study.add_trial(optuna.create_trial(value=9.0))
        content = path.read_bytes()
        assert content.startswith(whole) and all(json.loads(line) for line in content.splitlines())
        assert [t.value for t in _open(tmp_path).study.trials] == [0.0, 1.0, 2.0, 9.0]


def test_a_lock_is_free_as_soon_as_its_holder_is_killed(tmp_path):
    """Optuna's own lock file would be in the way for half a minute."""
    path = tmp_path / "journal.log.flock"
    code = f"import fcntl, time; h = open({str(path)!r}, 'w'); fcntl.flock(h, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        began = time.monotonic()
        _backend(tmp_path / "journal.log").append_logs([{"op_code": 0}])
        assert time.monotonic() - began < 2


def _backend(path: Path) -> JournalFileBackend:
    return JournalFileBackend(str(path), WholeLines(path))


def test_records_of_many_writers_stay_whole(tmp_path):
    path = tmp_path / "journal.log"

    def write(k: int) -> None:
        backend = _backend(path)
        for i in range(25):
            backend.append_logs([{"k": k, "i": i, "text": "x" * 3000}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((r["k"], r["i"]) for r in records) == [(k, i) for k in range(4) for i in range(25)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json\n", ", line 2, is not the journal"),
        ("[1]\n", ", line 2, is not the journal"),
        ('{"op_code": 77}\n', "is not the journal"),
    ],
)
def test_a_corrupted_journal_is_refused_with_its_line(tmp_path, line, said):
    _open(tmp_path)
    path = tmp_path / "journal.log"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first}\n{line}{rest}")
    with pytest.raises(UserError, match=said) as caught:
        _open(tmp_path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_who_asks_waits_for_who_asks(tmp_path):
    order, one, two = [], _open(tmp_path), _open(tmp_path)

    def second() -> None:
        with two.alone():
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with one.alone():
            waiting = pool.submit(second)
            time.sleep(0.1)
            order.append("first")
        waiting.result(timeout=5)
    assert order == ["first", "second"]


# ---- whose study it is ------------------------------------------------------------------------------------------------
def test_a_study_of_another_configuration_is_refused_and_says_what_differs(tmp_path):
    store = _open(tmp_path)
    assert store.study.user_attrs[IDENTITY] == "abc123" and re.match(r"20\d\d-", store.study.user_attrs[CREATED])
    assert _open(tmp_path).study.user_attrs == store.study.user_attrs
    with pytest.raises(UserError, match="another configuration.*given was 'abc123' and is '77'.*tune.name="):
        _open(tmp_path, identity="77")


def test_the_journal_of_another_study_is_refused(tmp_path):
    _open(tmp_path)
    with pytest.raises(UserError, match="holds the study 'toy/latent', not 'other/latent'"):
        _open(tmp_path, study="other")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    loaded = make_loaded(tmp_path)
    for folder in (tmp_path / "file" / "tune", Path("/proc/tune")):  # not even root may write there
        loaded.folder = folder
        with pytest.raises(UserError, match="cannot write .*choose another folder with runs_dir=DIR"):
            open_store(loaded)


# ---- URLs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///trials.db", "sqlite:... is no storage"),
        ("sqlite+pysqlite:///trials.db", "is no storage"),
        ("postgres://me:geheim@host/db", "did you mean 'postgresql'"),
        ("mysql://me:geheim@host/db", "mysql:... is no storage"),
        ("trials.db", "without a scheme"),
        ("postgresql:me:geheim@host", "is no storage"),
        ("postgresql://me:geheim@host:port/db", "cannot be read as a URL"),
        ("postgresql://me:geheim@host", "names no database"),
        ("postgresql://host/?password=geheim", "names no database"),
    ],
)
def test_what_is_no_storage_is_refused_without_its_password(url, said):
    with pytest.raises(UserError, match=said) as caught:
        checked_url(url)
    assert "geheim" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_password_is_never_shown():
    url = checked_url("postgresql://me:ge%2Fheim%7B@host/db?password=zwei")
    assert url.drivername == "postgresql+psycopg" and url.password == "ge/heim{"
    shown = scrub("login me ge/heim{ (ge%2Fheim%7B) zwei failed at host/db", url.render_as_string(hide_password=False))
    assert "heim" not in shown and "zwei" not in shown and "host/db" in shown


@pytest.mark.parametrize(
    ("scheme", "how"), [("postgresql", r"few-step-harness\[postgres\]"), ("postgresql+psycopg2", "leave '")]
)
def test_a_missing_driver_is_named(tmp_path, monkeypatch, scheme, how):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"the driver psycopg.* is not installed; .*{how}") as caught:
        _open(tmp_path, f"{scheme}://me:geheim@127.0.0.1:1/db")
    assert "geheim" not in str(caught.value)
