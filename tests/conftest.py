"""One finished tiny study for all tests that look at a study's results or start from them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.jobs.locks import waiting_for
from harness.store import read_json, write_json
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
    """Made once, whoever of pytest's worker processes comes first; two workers of its own, as many as cores."""
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished study"
    arguments = command(root / "words.txt", root / "runs", root / "cache", "tracking.enabled=true")
    with waiting_for(root / "lock"):
        if not (root / "said.json").exists():
            write_corpus(root / "words.txt")
            write_json(root / "said.json", dataclasses.asdict(invoke([*arguments, "compute.workers=2"])))
    said = Said(**read_json(root / "said.json"))
    return Finished(root / "words.txt", root / "runs", root / "cache", arguments, said)


@pytest.fixture
def threads(monkeypatch) -> None:
    """Workers are threads of the test's own process."""
    use_threads(monkeypatch)
