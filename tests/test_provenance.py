"""Code version, and hashes that are equal for equal content only."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from harness import provenance as pv


def _git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_state_of_a_repository(tmp_path):
    _git(tmp_path, "init", "-q")
    assert pv.git_state(tmp_path) == pv.GitState("unknown", None)
    (tmp_path / "a").write_text("1")
    (tmp_path / ".gitignore").write_text("env/\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "x")
    clean = pv.git_state(tmp_path)
    assert len(clean.sha) == 40 and clean.dirty is False and clean.label == clean.sha
    (tmp_path / "a").write_text("2")
    assert pv.git_state(tmp_path).label == clean.sha + "-dirty"
    (tmp_path / "env").mkdir()
    assert pv.git_state(tmp_path / "env").sha == "unknown", "an ignored folder is not the repository's code"


def test_git_state_without_repository_or_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert pv.git_state(tmp_path).label == "unknown"
    monkeypatch.setenv("PATH", "")
    assert pv.git_state(tmp_path).label == "unknown"


def test_record_is_filled():
    record = pv.provenance("cpu")
    assert record["device"] == "cpu" and record["device_name"]
    assert record["torch"] == record["packages"]["torch"] != "unknown"
    assert record["cpu_count"] >= 1 and record["python"].startswith("3.")
    assert "no-such-package" not in pv.package_versions(("no-such-package", "numpy"))


@dataclass
class _Options:
    width: int = 4
    rate: float = 0.1


def test_identity_is_the_sha_of_canonical_json():
    assert pv.canonical_json({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"\\u00e9"],"b":1}'
    assert pv.identity_hash({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert pv.short_hash({"a": 1}) == pv.identity_hash({"a": 1})[:12]


def test_identity_of_equal_and_different_content():
    assert pv.identity_hash({"a": (1, 2), "b": 1}) == pv.identity_hash({"b": np.int64(1), "a": np.array([1, 2])})
    assert pv.identity_hash(_Options()) == pv.identity_hash({"rate": 0.1, "width": 4})
    assert pv.identity_hash(_Options(rate=0.2)) != pv.identity_hash(_Options())
    assert pv.identity_hash(Path("/a/b")) == pv.identity_hash("/a/b")


@pytest.mark.parametrize("bad", [{1: 2}, {"a": object()}, {"a": {1, 2}}, [float("nan")]])
def test_what_has_no_identity_is_refused(bad):
    with pytest.raises((TypeError, ValueError)):
        pv.identity_hash(bad)
