"""Tunings in a PostgreSQL database: the same promises as with a journal, kept on a server that the test starts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from harness.errors import UserError
from harness.search.claims import LOST, RETRY_OF, Claims, all_trials, put_back, status, tally
from harness.search.presence import Presence
from harness.search.storage import is_away, open_study
from harness.search.worker import patiently
from tests.tune_fakes import check_nothing_lost, kill_workers, load_fake
from tests.tune_server import free_port, postgres


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("tune") / "postgres") as running:
        yield running


def _open(server, folder, *more, **times):
    return open_study(load_fake([f"folder={folder}", f"tune.storage={server.url()}", *more], []), ["minimize"], **times)


def _claim(opened, folder, worker, wanted=5, grace=90):
    claims = Claims(opened, folder / "workers", wanted, 3, grace)
    return claims.claim(worker, lambda number: None, lambda trial: {"x": trial.suggest_float("x", 0, 1)})


def test_eight_workers_on_a_fresh_database_each_killed(server, tmp_path):
    done = kill_workers(tmp_path / "tune", workers=8, trials=40, kills=1, seconds=0.3, seed=1, storage=server.url())
    check_nothing_lost(done)
    assert sum(done.kills.values()) == 8 and done.kills["in a trial"] > 0, done.kills
    # The password is in no file of the tuning.
    for path in (tmp_path / "tune").rglob("*"):
        assert not path.is_file() or server.password.encode() not in path.read_bytes()


def test_many_open_a_fresh_database_at_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda k: _open(server, tmp_path, "study=at-once"), range(4)))
    assert len({o.study.study_name for o in opened}) == 1
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(lambda o: _claim(o, tmp_path, "gone", wanted=3), opened))
    assert sorted(c[0].number for c in claimed if c) == [0, 1, 2] and claimed.count(None) == 1


def test_a_host_that_is_not_heard_of_loses_its_trial(server, tmp_path):
    """Two hosts that share the database alone: neither sees the other's files."""
    here, there = tmp_path / "here", tmp_path / "there"
    opened = _open(server, here, "study=hosts", beat=1, grace=2)
    with Presence(there / "workers", 0, 60) as far, Presence(here / "workers", 0, 60) as near:
        lost, values = _claim(opened, there, far.name, wanted=1)
        alive = threading.Event()

        def live() -> None:
            while not alive.wait(0.5):
                opened.beat(lost.number)

        beating = threading.Thread(target=live)
        beating.start()
        time.sleep(2.5)
        assert _claim(opened, here, near.name, wanted=1) is None, "it is alive"
        alive.set()
        beating.join()
        time.sleep(2.5)
        again, same = _claim(opened, here, near.name, wanted=1)
        assert same == values and again.user_attrs[RETRY_OF] == lost.number
        with pytest.raises((optuna.exceptions.UpdateFinishedTrialError, ValueError)):
            opened.study.tell(lost, 1.0)
        opened.study.tell(again, 2.0)
    assert Counter(status(t) for t in all_trials(opened.study)) == {"lost": 1, "complete": 1}


def test_a_dead_worker_of_this_host_is_found_at_once(server, tmp_path):
    opened = _open(server, tmp_path, "study=dead")
    with pytest.raises(RuntimeError), Presence(tmp_path / "workers", 0, 60) as gone:
        _, values = _claim(opened, tmp_path, gone.name)
        raise RuntimeError
    with Presence(tmp_path / "workers", 1, 60) as me:
        trial, same = _claim(opened, tmp_path, me.name)
        assert same == values and LOST in all_trials(opened.study)[0].user_attrs
        put_back(opened, trial)
        assert _claim(opened, tmp_path, me.name)[1] == values


def test_another_configuration_is_refused(server, tmp_path):
    _open(server, tmp_path, "study=identity")
    with pytest.raises(UserError, match="of another configuration"):
        _open(server, tmp_path, "study=identity", "identity=77")
    _open(server, tmp_path, "study=identity", "identity=77", "name=other")


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
        open_study(load_fake([f"folder={tmp_path}", f"tune.storage={server.url(**change)}"], []), ["minimize"])
    text = str(caught.value)
    assert "\n" not in text and "geheim" not in text and "cret" not in text


def test_a_server_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    port = free_port()
    with pytest.raises(UserError, match=f"127.0.0.1.*{port}.*refused") as caught:
        open_study(
            load_fake([f"folder={tmp_path}", f"tune.storage=postgresql://me:geheim@127.0.0.1:{port}/db"], []),
            ["minimize"],
        )
    assert "geheim" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_outlives_a_restart_of_the_server(server, tmp_path):
    opened = _open(server, tmp_path, "study=restart")
    trial, _ = _claim(opened, tmp_path, "gone")
    restarting = threading.Thread(target=lambda: server.control("-m", "immediate", "restart"))
    seen = []

    def tell() -> None:
        try:
            opened.study.tell(trial, 1.0)
        except Exception as error:
            seen.append(is_away(error))
            raise

    restarting.start()
    time.sleep(0.05)
    patiently(tell)
    restarting.join()
    assert all(seen) and tally(all_trials(opened.study)).complete == 1
