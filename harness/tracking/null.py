"""Tracking switched off (`tracking.enabled=false`): the study's files are written as ever, and nothing else."""

from __future__ import annotations

from harness.tracking.base import Tracker


class NullTracker(Tracker):
    """Takes every call and does nothing."""

    def connect(self) -> None:
        pass

    def open_study(self, name, params, tags, key=None) -> str:
        return ""

    def attach(self, parent_id) -> None:
        pass

    def open_cell(self, parent_id, name, key, params, tags) -> str:
        return ""

    def log_curves(self, run_id, points) -> None:
        pass

    def log_scores(self, run_id, scores, nfe, time_ms) -> None:
        pass

    def log_samples(self, run_id, rows, name="samples") -> None:
        pass

    def log_file(self, run_id, path, folder=None) -> None:
        pass

    def log_dataset(self, run_id, name, digest, source, profile=None) -> None:
        pass

    def set_tags(self, run_id, tags) -> None:
        pass

    def children(self, parent_id) -> dict[str, dict[str, str]]:
        return {}

    def finish(self, run_id, status, time_ms=None) -> None:
        pass

    def resolve(self, run_id) -> None:
        return None

    def close(self) -> None:
        pass
