"""What a user may get wrong in a search: one line that names it, exit code 2, never a traceback or a password."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
from pathlib import Path

import pytest

from harness import tune
from harness.search.load import load_tune
from harness.search.storage import open_store
from tests.kit.tune_server import free_port
from tests.kit.tune_toys import write_files

_TASK = ["study=exact", "only_tasks=[hmm]"]
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


#: One of each kind: what all of them are is in `test_tune_config.py`.
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (_TASK, "tune= is missing.*latent"),
        ([*_TASK, "tune=latnt"], "tune=latnt: .*did you mean 'latent'"),
        (["study=exact", "tune=latent"], "(?=.*binsaw)(?=.*only_tasks)"),
        (["study=exact", "only_tasks=[hnm]", "tune=latent"], "did you mean 'hmm'"),
        ([*_TASK, "tune=latent", "tune.trials=0"], "tune.trials=0: must be 1 or more"),
        ([*_TASK, "tune=latent", "scale.stepz=3"], "scale.stepz"),
        ([*_TASK, "tune=latent", "tune.name=a/b"], "tune.name=a/b"),
        ([*_TASK, "tune=latent", f"tune.storage=mysql://me:{_SECRET}@host/db"], "mysql:... is no storage"),
        ([*_TASK, "tune=latent", f"tune.storage='postgresql://me:{_SECRET}@host:port/db'"], "cannot be read as a URL"),
        (["--cfg", "all"], "only 'job'"),
        (["--trials", "3"], "unknown option '--trials'"),
        (["--config-dir", "/nowhere/at/all", *_TASK, "tune=latent"], "does not exist"),
    ],
    ids=lambda value: value[-1][:40].replace("/", "_") if isinstance(value, list) else "",
)
def test_what_is_refused_before_anything_is_opened(arguments, said, tmp_path):
    line = _refused([*arguments, *([f"runs_dir={tmp_path}"] if "--" not in arguments[0] else [])])
    assert re.search(said, line), line
    assert not list(tmp_path.iterdir()), "nothing is written for what is refused"


# ---- storages and workers ---------------------------------------------------------------------------------------------
_HEAT = ["study=tunable", "tune=heat", "tune.trials=1", "tune.workers=1", "tune.confirm.top=0", "compute.device=cpu"]


@pytest.fixture
def toy(tmp_path, monkeypatch) -> list[str]:
    """Arguments of a search that takes a second."""
    monkeypatch.chdir(tmp_path)
    return ["--config-dir", str(write_files(tmp_path)), *_HEAT, "runs_dir=runs", "cache_dir=cache"]


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_storage_that_is_not_there(toy, host):
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    assert host in _refused([*toy, f"tune.storage=postgresql://me:{_SECRET}@{host}:{free_port()}/db"])


def test_a_missing_driver(toy, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "psycopg" else find(name, *a))
    line = _refused([*toy, f"tune.storage=postgresql://me:{_SECRET}@host/db"])
    assert "pip install 'few-step-harness[postgres]'" in line


def test_a_corrupted_journal_and_the_journal_of_another_study(toy):
    folder = Path("runs/tunable/tune/heat")
    open_store(load_tune(toy[2:], [Path("configs").resolve()]))
    assert "tune.name=NAME" in _refused([*toy, "tune.samples=20"])
    assert "holds the study 'tunable/heat'" in _refused([*toy, "tune.name=other", f"runs_dir={_moved(folder)}"])
    journal = folder / "journal.log"
    journal.write_text("broken\n" + journal.read_text())
    assert "journal.log, line 1, is not the journal" in _refused(toy)


def _moved(folder: Path) -> Path:
    """Another folder of runs, with the journal where a search of another name looks for its own."""
    there = Path("elsewhere").resolve()
    shutil.copytree(folder, there / "tunable" / "tune" / "other")
    return there


def test_a_folder_that_cannot_be_written(toy, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "runs", Path("/proc/runs")):  # not even root may write there
        assert "choose another folder" in _refused([*toy, f"runs_dir={place}"])


def test_what_only_a_worker_finds_out_ends_the_command_with_one_line(toy):
    line = _refused([*toy, "tune.constraints.c={column: repeats, nfe: 2, min: 0.999, within: 0.01}"])
    assert re.search("tune.constraints.c: nothing is within 0.01 of the data's repeats", line)
    assert not list(Path("runs").rglob("model.safetensors"))
