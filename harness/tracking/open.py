"""The tracker that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from harness.config.schema import TrackingConfig
from harness.tracking.base import Tracker
from harness.tracking.mlflow_tracker import MlflowTracker


def open_tracker(
    cfg: TrackingConfig, runs_dir: str | Path, experiment: str | None = None, system_metrics: bool | None = None
) -> Tracker:
    """MLflow's, or one that does nothing (`tracking.enabled=false`); it connects when it is first used.

    `experiment` is taken where the configuration names none, `system_metrics` instead of what it says. Raises `UserError`
    for an address that cannot be one.
    """
    if not cfg.enabled:
        return Tracker()
    load = cfg.system_metrics if system_metrics is None else system_metrics
    return MlflowTracker(TrackingConfig(True, cfg.uri, cfg.experiment or experiment, load), Path(runs_dir))
