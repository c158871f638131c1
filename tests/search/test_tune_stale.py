"""Trials that other code made: they are told apart from those of the code that is here, and so are the weights they share."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pandas as pd
import pytest

from harness import tune
from harness.study import made
from tests.kit.study_kit import Said, use_threads
from tests.kit.tune_toys import arguments, write_files

_EDITED = "mine.part"


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Runs a search of trials that only sample; what it says, with more arguments."""
    use_threads(monkeypatch)
    configs = write_files(tmp_path)
    own = ["tune=heat", "tune.workers=1", "tune.confirm.top=0", "tune.sampler=random", "tracking.enabled=false"]

    def run(*more: str) -> Said:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = tune.main(["--config-dir", str(configs), *arguments(tmp_path), *own, *more])
        return Said(code, out.getvalue(), err.getvalue())

    return run


def _edit(monkeypatch, step: str) -> None:
    """From here on the code of a step is another one, as it would be in a new process after an edit."""
    true = made.row_code

    def edited(session, what, method, sampler):
        return true(session, what, method, sampler) | ({_EDITED: "edited"} if what == step else {})

    monkeypatch.setattr("harness.study.made.row_code", edited)
    monkeypatch.setattr("harness.search.loaded.row_code", edited)


def _weights(root: Path) -> set[str]:
    return {path.parent.parent.name for path in (root / "runs" / "tunable" / "weights").rglob("model.safetensors")}


def _table(root: Path, name: str = "heat") -> pd.DataFrame:
    return pd.read_parquet(root / "runs" / "tunable" / "tune" / name / "trials.parquet")


def test_trials_of_other_code_are_refused_kept_or_left_for_another_search(search, monkeypatch, tmp_path):
    assert search("tune.trials=2").code == 0
    before = _table(tmp_path)
    _edit(monkeypatch, "train")
    for wanted in (2, 3):
        said = search(f"tune.trials={wanted}")
        assert said.code == 2 and f"2 of 2 trials were made by other code than what is here: {_EDITED}" in said.error
        assert "stale=keep" in said.error and "tune.name=NAME" in said.error and _table(tmp_path).equals(before)
    kept = search("tune.trials=3", "stale=keep")
    assert kept.code == 0 and "stale=keep: 2 of 2 trials" in kept.err
    table = _table(tmp_path)
    assert table["value.quality"][:2].tolist() == before["value.quality"].tolist() and table["git_sha"].notna().all()
    assert _weights(tmp_path) == {"weights"}, "stale=keep takes those that are there"
    assert search("tune.trials=2", "tune.name=other").code == 0
    assert len(_weights(tmp_path)) == 2, "weights of other code are left alone"
