"""What a user may get wrong in a search: one line that names it, exit code 2, never a traceback or a password."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest

from harness import tune
from harness.search import load, objective, process, results
from harness.search.storage import open_study
from tests import tune_command
from tests.tune_fakes import LOAD, RUNNER, load_fake
from tests.tune_server import free_port, postgres

_HMM = ["study=exact", "only_tasks=[hmm]"]
_SECRET = "geheim"


def _invoke(arguments: list[str]) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = tune.main(arguments)
    return code, out.getvalue()


def _refused(arguments: list[str]) -> str:
    """The one line that says why; the last one, where what is read was announced before."""
    code, said = _invoke(arguments)
    assert code == 2, said
    line = said.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in said and _SECRET not in said
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (_HMM, "tune= is missing.*latent"),
        ([*_HMM, "tune=latnt"], "tune=latnt: .*did you mean 'latent'"),
        (["study=exact", "tune=latent"], "(?=.*binsaw)(?=.*only_tasks)"),
        (["study=exact", "only_tasks=[binsaw,hmm]", "tune=latent"], "only_tasks"),
        (["study=exact", "only_tasks=[hnm]", "tune=latent"], "did you mean 'hmm'"),
        ([*_HMM, "tune=latent", "tune.trials=0"], "tune.trials=0: must be 1 or more"),
        ([*_HMM, "tune=latent", "tune.workers=-1"], "tune.workers=-1: must be 0 or more"),
        ([*_HMM, "tune=latent", "tune.retries=-2"], "tune.retries=-2"),
        ([*_HMM, "tune=latent", "tune.trails=3"], "unknown key 'tune.trails'.*did you mean 'tune.trials'"),
        ([*_HMM, "tune=latent", "tune.trials=many"], "tune.trials=many"),
        ([*_HMM, "tune=latent", "tune.sampler=tpee"], "tune.sampler=tpee.*did you mean 'tpe'"),
        ([*_HMM, "tune=latent", "tune.method=sek"], "tune.method=sek.*did you mean 'seq'"),
        ([*_HMM, "tune=latent", "scale.stepz=3"], "scale.stepz"),
        ([*_HMM, "tune=latent", "tune.objectives.quality.column=exces"], "exces.*did you mean 'excess"),
        ([*_HMM, "tune=latent", "tune.name=a/b"], "tune.name=a/b"),
        ([*_HMM, "tune=latent", "tune.storage=sqlite:///trials.db"], "SQLite"),
        ([*_HMM, "tune=latent", f"tune.storage=mysql://me:{_SECRET}@host/db"], "mysql:... is no storage"),
        ([*_HMM, "tune=latent", f"tune.storage='postgresql://me:{_SECRET}@host:port/db'"], "cannot be read as a URL"),
        (["--cfg", "all"], "only 'job'"),
        (["--trials", "3"], "unknown option '--trials'"),
        (["--config-dir", "/nowhere/at/all", *_HMM, "tune=latent"], "does not exist"),
    ],
    ids=lambda value: value[-1][:40].replace("/", "_") if isinstance(value, list) else "",
)
def test_what_is_refused_before_anything_is_opened(arguments, said, tmp_path):
    line = _refused([*arguments, *([f"runs_dir={tmp_path}"] if "--" not in arguments[0] else [])])
    assert re.search(said, line), line
    assert not list(tmp_path.iterdir()), "nothing is written for what is refused"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ('"{method}.slotz": {low: 1, high: 4}', "slotz.*did you mean"),
        ('"{method}.slots": {low: 4, high: 1}', "slots.*4.*1"),
        ('"{method}.slots": {low: 0, high: 4, log: true}', "log"),
        ('"{method}.slots": {low: 1, high: 4, when: {nothing: [1]}}', "when|nothing"),
        ('"{method}.slots": {lo: 1, high: 4}', "lo"),
    ],
)
def test_a_space_that_cannot_be_meant(space, said, tmp_path):
    (tmp_path / "conf" / "tune").mkdir(parents=True)
    text = f"# Mine\ncandidates: [seq_one_call, seq]\nspace:\n  {space}\nobjectives:\n  quality: {{nfe: 4}}\n"
    (tmp_path / "conf" / "tune" / "mine.yaml").write_text(text)
    line = _refused(["--config-dir", str(tmp_path / "conf"), *_HMM, "tune=mine", f"runs_dir={tmp_path / 'runs'}"])
    assert re.search(said, line), line


# ---- storages, on fakes of all else -----------------------------------------------------------------------------------
@pytest.fixture
def fakes(monkeypatch):
    """The command on fakes."""
    monkeypatch.setattr(load, "load_tune", load_fake)
    monkeypatch.setattr(results, "finish", tune_command.finish)
    monkeypatch.setattr(process, "Spec", functools.partial(process.Spec, load=LOAD, runner=RUNNER))
    monkeypatch.setattr(objective, "directions", lambda loaded: ["minimize"])


def test_a_storage_that_is_not_there(fakes, tmp_path):
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    url = f"postgresql://me:{_SECRET}@127.0.0.1:{free_port()}/db"
    assert "refused" in _refused([f"folder={tmp_path}", f"tune.storage={url}"])


def test_a_host_that_does_not_exist(fakes, tmp_path):
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    line = _refused([f"folder={tmp_path}", f"tune.storage=postgresql://me:{_SECRET}@no.such.host.invalid/db"])
    assert "no.such.host.invalid" in line


def test_a_missing_driver(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = _refused([f"folder={tmp_path}", f"tune.storage=postgresql://me:{_SECRET}@host/db"])
    assert "pip install 'few-step-harness[postgres]'" in line


def test_a_wrong_password_a_missing_database_and_another_study(fakes, tmp_path):
    with postgres(tmp_path / "postgres") as server:
        assert "refuses user 'tuner'" in _refused(
            [f"folder={tmp_path}", f"tune.storage={server.url(password=_SECRET)}"]
        )
        assert "has no database 'nowhere'" in _refused(
            [f"folder={tmp_path}", f"tune.storage={server.url(database='nowhere')}"]
        )
        given = [f"folder={tmp_path}", f"tune.storage={server.url()}", "trials=1", "seconds=0"]
        assert _invoke(given)[0] == 0
        assert "of another configuration" in _refused([*given, "identity=77"])


def test_a_corrupted_journal_and_the_journal_of_another_study(fakes, tmp_path):
    given = [f"folder={tmp_path}", "trials=1"]
    open_study(load_fake(given, []), ["minimize"])
    assert "holds the study 'fake-study/fake'" in _refused([*given, "study=other"])
    assert "tune.name=NAME" in _refused([*given, "identity=77"])
    journal: Path = tmp_path / "journal.log"
    journal.write_text("broken\n" + journal.read_text())
    assert "journal.log, line 1, is not a record" in _refused(given)


def test_a_folder_that_cannot_be_written(fakes, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another folder with runs_dir=DIR" in _refused([f"folder={tmp_path / 'file' / 'tune'}"])
    if Path("/proc/version").exists():  # not even root may write here
        assert "choose another folder with runs_dir=DIR" in _refused(["folder=/proc/tune"])


def test_workers_that_are_refused_their_work(fakes, tmp_path, monkeypatch):
    """What only a worker finds out ends the command with the worker's own line."""
    monkeypatch.setattr(process, "Spec", functools.partial(process.Spec, runner="tests.tune_fakes:RefusedRunner"))
    line = _refused([f"folder={tmp_path}", "trials=2"])
    assert line == "error: nothing can satisfy this constraint; loosen it"


def test_workers_that_cannot_begin_are_given_up(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "Spec", functools.partial(process.Spec, runner="tests.tune_fakes:BrokenRunner"))
    code, said = _invoke([f"folder={tmp_path}", "trials=2"])
    assert code == 1 and "Traceback" not in said
    assert re.search(r"failed: workers: 3 could not begin.*RuntimeError: a bug.*workers", said.splitlines()[-1]), said
    (log,) = (tmp_path / "workers").glob("*.log")
    assert "Traceback" in log.read_text()
