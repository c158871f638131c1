"""Searches in a PostgreSQL database: the same promises as with a journal, kept on a server that the test starts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness.errors import UserError
from harness.search import queue, storage
from harness.search.queue import Queue
from harness.search.schema import DimensionConfig, ObjectiveConfig, TuneConfig
from harness.search.storage import Store, open_store
from harness.search.trials import LOST, RETRY_OF, all_trials, status, tally
from tests.kit.tune_kit import make_loaded
from tests.kit.tune_server import Server, free_port, postgres


@pytest.fixture(scope="module")
def server():
    with postgres() as running:
        yield running


def _config(url: str, wanted: int = 5) -> TuneConfig:
    space = {"x": DimensionConfig("float", 0, 1)}
    return TuneConfig(name="toy", space=space, objectives={"q": ObjectiveConfig()}, trials=wanted, storage=url)


def _store(url: str, folder: Path, study: str = "toy", **more: Any) -> Store:
    return open_store(make_loaded(folder, _config(url), folder=folder, study=study, **more))


def _queue(server: Server, folder: Path, study: str, wanted: int = 5) -> Queue:
    """That of another command each time, on a host whose files are in `folder`."""
    return Queue(_store(server.url(), folder, study), _config("", wanted), folder / "commands")


def test_many_open_a_fresh_database_at_once_and_ask_for_no_more_than_is_wanted(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        queues = list(pool.map(lambda k: _queue(server, tmp_path / str(k), "at-once", wanted=5), range(4)))
        list(pool.map(lambda q: q.ask(2), queues))
    asked = [number for q in queues for number in q.asked]
    assert sorted(asked) == [0, 1, 2, 3, 4]


def test_a_host_that_is_not_heard_of_loses_its_trial(server, tmp_path, monkeypatch):
    """Two hosts that share the database alone: neither sees the other's files."""
    monkeypatch.setattr(storage, "GRACE", 2)
    monkeypatch.setattr(storage, "BEAT", 1)
    monkeypatch.setattr(queue, "BEAT", 0.5)
    far, near = (_queue(server, tmp_path / name, "hosts", wanted=1) for name in ("far", "near"))
    with near.present():
        with far.present():
            far.ask(1)
            lost = far.asked[0]
            time.sleep(2.5)
            near.ask(1)
            assert not near.asked, "it is alive"
            far._leave = lambda: None  # it loses its power
        time.sleep(2.5)
        near.ask(1)
        again = near.asked[1]
        assert again.params == lost.params and again.user_attrs[RETRY_OF] == 0
        with pytest.raises((optuna.exceptions.UpdateFinishedTrialError, ValueError)):
            far.store.study.tell(lost, 1.0)
        near.store.study.tell(near.asked.pop(1), 2.0)
    assert Counter(status(t) for t in all_trials(near.store.study)) == {"lost": 1, "complete": 1}


def test_a_dead_command_of_this_host_is_found_at_once(server, tmp_path):
    gone, other = (_queue(server, tmp_path, "dead", wanted=1) for _ in range(2))
    with gone.present():
        gone.ask(1)
        gone._leave = lambda: None  # killed: the lock's file stays, and nobody holds it
        kept = gone._lock_file(gone.name)
    kept.touch()
    with other.present():
        other.ask(1)
        assert other.asked[1].params == gone.asked[0].params
        assert LOST in all_trials(other.store.study)[0].user_attrs
    assert not kept.exists()


def test_another_configuration_is_refused(server, tmp_path):
    _store(server.url(), tmp_path, "identity")
    with pytest.raises(UserError, match="of another configuration"):
        _store(server.url(), tmp_path, "identity", identity="77")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "geheim"}, "refuses user 'tuner' with this password"),
        ({"user": "nobody-there"}, "refuses user 'nobody-there'"),
        ({"database": "nowhere"}, "has no database 'nowhere'"),
    ],
)
def test_a_refusal_is_one_line_without_the_password(server, tmp_path, change, said):
    with pytest.raises(UserError, match=said) as caught:
        _store(server.url(**change), tmp_path)
    text = str(caught.value)
    assert "\n" not in text and "geheim" not in text and "cret" not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_server_that_is_not_there_is_named(tmp_path, host):
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    port = free_port()
    with pytest.raises(UserError, match=host.replace(".", r"\.")) as caught:
        _store(f"postgresql://me:geheim@{host}:{port}/db", tmp_path)
    assert "geheim" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_outlives_a_restart_of_the_server(server, tmp_path):
    one = _queue(server, tmp_path, "restart", wanted=6)
    with one.present():
        one.ask(2)
        restarting = threading.Thread(target=lambda: server.control("-m", "immediate", "restart"))
        restarting.start()
        time.sleep(0.05)
        one.end(0, {"pruned": "at step 1"}, optuna.trial.TrialState.PRUNED)
        one.ask(4)
        restarting.join()
        assert len(one.asked) == 5
    now = tally(all_trials(one.store.study))
    assert now["pruned"] == 1 and not now["running"] and now["counted"] == 1
