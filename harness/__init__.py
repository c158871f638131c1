"""A benchmark of few-step generators of discrete data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from harness.study.exported import Drawn


def load(run: str | Path, method: str = "", seed: int | None = None) -> Drawn:
    """A trained model of a study, or one that was exported; see `harness.study.model.load`."""
    from harness.study import model  # start-up time: torch takes seconds, and commands import this package

    return model.load(run, method, seed)
