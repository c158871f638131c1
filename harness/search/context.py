"""What all trials of a search have in common, as plain data: it goes to worker processes and holds no login."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.search.schema import TuneConfig
from harness.study.session import Session


@dataclass(frozen=True)
class Context:
    """The search without its storage, the configuration of a trial with the default values, and where files go."""

    cfg: TuneConfig
    tree: dict[str, Any]
    place: str  # name of the search as a study: `<study>/tune/<name>`
    folder: Path
    weights: Path  # the study's own folder of weights, which all of its searches share
    identity: str
    #: The data's own scores, once they are known; see `harness.search.objective.data_values`.
    of_data: dict[str, float] = field(default_factory=dict, repr=False)

    @cached_property
    def session(self) -> Session:
        """A trial with the default values, whose data and judge others may adopt."""
        return Session(self.tree, self.weights)

    def shared(self) -> Context:
        """The same without what was built from it: what a worker process is sent."""
        return replace(self)


@dataclass(frozen=True)
class Job:
    """One trial: its number and its configuration."""

    number: int
    tree: dict[str, Any]
