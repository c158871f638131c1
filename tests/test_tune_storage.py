"""Where trials are kept: what a killed writer leaves in the journal, whose study it is, and which URLs are storages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from harness.errors import UserError
from harness.search.journal import WholeLines, held
from harness.search.presence import Presence, boot_id, forget_dead, is_dead
from harness.search.storage import CREATED, IDENTITY, open_study
from harness.search.urls import checked_url, hide_password, masked
from tests.tune_fakes import load_fake


def _open(folder, *more):
    return open_study(load_fake([f"folder={folder}", *more], []), ["minimize"])


# ---- the journal ------------------------------------------------------------------------------------------------------
def test_a_torn_last_line_is_taken_off_and_nothing_else(tmp_path):
    opened = _open(tmp_path)
    for k in range(3):
        opened.study.add_trial(optuna.create_trial(value=float(k)))
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
        WholeLines(tmp_path / "journal.log").append_logs([{"op_code": 0}])
        assert time.monotonic() - began < 2


def test_records_of_many_writers_stay_whole(tmp_path):
    path = tmp_path / "journal.log"

    def write(k: int) -> None:
        backend = WholeLines(path)
        for i in range(40):
            backend.append_logs([{"k": k, "i": i, "text": "x" * 3000}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((r["k"], r["i"]) for r in records) == [(k, i) for k in range(4) for i in range(40)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json\n", ", line 2, is not a record"),
        ("[1]\n", ", line 2, is not a record"),
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


# ---- whose study it is ------------------------------------------------------------------------------------------------
def test_a_study_of_another_configuration_is_refused_and_says_what_differs(tmp_path):
    opened = _open(tmp_path)
    assert opened.study.user_attrs[IDENTITY] == "0123" and re.match(r"20\d\d-", opened.study.user_attrs[CREATED])
    assert _open(tmp_path).study.user_attrs == opened.study.user_attrs
    with pytest.raises(UserError, match="another configuration.*given was '0123' and is '77'.*tune.name="):
        _open(tmp_path, "identity=77")


def test_the_journal_of_another_study_is_refused(tmp_path):
    _open(tmp_path)
    with pytest.raises(UserError, match="holds the study 'fake-study/fake', not 'other/fake'"):
        _open(tmp_path, "study=other")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose another folder with runs_dir=DIR"):
        _open(tmp_path / "file" / "tune")


# ---- URLs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///trials.db", "SQLite"),
        ("sqlite+pysqlite:///trials.db", "SQLite"),
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
    shown = masked(url) + hide_password("login me ge/heim{ (ge%2Fheim%7B) zwei failed", url)
    assert "heim" not in shown and "zwei" not in shown and "host/db" in shown


@pytest.mark.parametrize(
    ("scheme", "how"), [("postgresql", r"few-step-harness\[postgres\]"), ("postgresql+psycopg2", "leave '")]
)
def test_a_missing_driver_is_named(tmp_path, monkeypatch, scheme, how):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"the driver psycopg.* is not installed; .*{how}") as caught:
        _open(tmp_path, f"tune.storage={scheme}://me:geheim@127.0.0.1:1/db")
    assert "geheim" not in str(caught.value)


# ---- who lives --------------------------------------------------------------------------------------------------------
def test_a_worker_is_dead_when_nobody_holds_its_file(tmp_path):
    with Presence(tmp_path, 0, beat=60) as worker:
        assert not is_dead(tmp_path, worker.name, grace=0, missing=True)
        forget_dead(tmp_path, grace=0)
        assert worker.path.exists()
    assert not worker.path.exists()  # it left in good order
    assert is_dead(tmp_path, worker.name, grace=0, missing=True) and not is_dead(
        tmp_path, worker.name, 0, missing=False
    )
    with pytest.raises(RuntimeError), Presence(tmp_path, 1, beat=60) as worker:
        raise RuntimeError
    assert is_dead(tmp_path, worker.name, grace=999, missing=False)
    forget_dead(tmp_path, grace=999)
    assert not worker.path.exists()


def test_a_worker_on_another_host_is_dead_when_its_file_is_old(tmp_path):
    path = tmp_path / "far-1-0-abcd.lock"
    path.write_text("another boot")
    assert boot_id() != "another boot"
    assert not is_dead(tmp_path, "far-1-0-abcd", grace=90, missing=True)
    os.utime(path, (time.time() - 100,) * 2)
    assert is_dead(tmp_path, "far-1-0-abcd", grace=90, missing=True)


def test_a_living_worker_says_so_again_and_again(tmp_path):
    called = []
    with Presence(tmp_path, 0, beat=0.05, also=lambda: called.append(1)) as worker:
        os.utime(worker.path, (1, 1))
        until = time.monotonic() + 5
        while len(called) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(called) >= 2 and worker.path.stat().st_mtime > 1


def test_a_name_from_the_storage_cannot_point_outside_the_folder(tmp_path):
    (tmp_path / "victim.lock").write_text(boot_id())
    (tmp_path / "workers").mkdir()
    assert not is_dead(tmp_path / "workers", "../victim", grace=0, missing=False)


def test_waiting_for_the_lock_of_a_claim(tmp_path):
    order = []

    def second() -> None:
        with held(tmp_path / "claim.lock"):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with held(tmp_path / "claim.lock"):
            waiting = pool.submit(second)
            time.sleep(0.1)
            order.append("first")
        waiting.result(timeout=5)
    assert order == ["first", "second"]
