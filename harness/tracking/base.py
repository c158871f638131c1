"""What a study tells a tracking service. The files of a study are the record; tracking is a replay of them.

Every call may be made again with the same arguments (after a crash all of them are) and must then change nothing.
Times are milliseconds since 1970 and come from the files, so that a replayed point is the same point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Point(TypedDict):
    """One point of a training curve."""

    name: str
    value: float
    step: int
    time_ms: int


class Tracker:
    """Takes every call and does nothing: tracking switched off; a service overrides all of them.

    Run ids are opaque: one that was handed out while the service was down is made good later (see `resolve`).
    """

    #: Where it is seen, without a login; empty: nowhere.
    where = ""

    def connect(self) -> None:
        """Make sure that the service answers; raises `UserError` if it does not."""

    def open_study(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], key: str | None = None) -> str:
        """Create or reopen the run of a study; the first call, so it raises `UserError` if the service is not there.

        `params` is the flattened configuration. `key` identifies the study (default: its name and runs folder).
        """
        return ""

    def open_cell(self, parent_id: str, name: str, key: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """Create or reopen the child run of a cell; `key` identifies it within the study."""
        return ""

    def log_curves(self, run_id: str, points: Sequence[Point]) -> None:
        """Training curves, with the optimiser's step as the step."""

    def log_scores(self, run_id: str, scores: Mapping[str, float | None], nfe: int, time_ms: int) -> None:
        """Scores at one budget, with NFE as the step, so that one chart overlays all methods. Unknown: not logged."""

    def log_samples(self, run_id: str, rows: Sequence[Mapping[str, Any]], name: str = "samples") -> None:
        """A table of samples; replaces the table of that name."""

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Any file; replaces a file of the same name."""

    def log_dataset(
        self, run_id: str, name: str, digest: str, source: str, profile: Mapping[str, Any] | None = None
    ) -> None:
        """The data as an input of the run: a fingerprint, where it came from, and figures about it."""

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Tags of a run, replacing those of the same names; None is left out."""

    def describe(self, run_id: str, text: str) -> None:
        """What the service's page of a run says about it, in Markdown."""

    def link(self) -> str:
        """Where the runs of the study can be looked at; "" where there is nothing to see."""
        return ""

    def children(self, parent_id: str) -> dict[str, dict[str, str]]:
        """Tags of each child run by run id, with its status as "status"; empty where the service does not answer."""
        return {}

    def finish(self, run_id: str, status: Status, time_ms: int | None = None) -> None:
        """Close a run; `time_ms` is when its work ended (default: now)."""

    def resolve(self, run_id: str) -> str | None:
        """The service's own id of a run, or None while it has none."""
        return None

    def close(self) -> None:
        """Send what waits, stop what runs in the background. May be called more than once."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
