"""One finished tiny study for all tests that look at a study's results or start from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.study_kit import Said, command, invoke, use_threads, write_corpus

os.environ.pop("MLFLOW_TRACKING_URI", None)  # whoever runs the tests may have a server of their own


@dataclass(frozen=True)
class Finished:
    """A study that ran to its end in worker processes, with tracking; its folders must not be changed."""

    corpus: Path
    runs: Path
    cache: Path
    arguments: list[str]
    said: Said

    @property
    def folder(self) -> Path:
        return self.runs / "smoke"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    root = tmp_path_factory.mktemp("finished study")
    corpus = write_corpus(root / "words.txt")
    arguments = command(corpus, root / "runs", root / "cache", "tracking.enabled=true")
    return Finished(corpus, root / "runs", root / "cache", arguments, invoke(arguments))


@pytest.fixture
def threads(monkeypatch) -> None:
    """Workers are threads of the test's own process."""
    use_threads(monkeypatch)
