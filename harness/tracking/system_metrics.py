"""Load of the machine while a study runs (`system/...` in MLflow), sampled in the background for the parent run."""

from __future__ import annotations

import sys
from typing import Any

_SECONDS_BETWEEN = 5


class SystemMetrics:
    """Runs MLflow's own monitor on a run id; says so once and goes without where `psutil` is not installed."""

    def __init__(self, uri: str) -> None:
        self.run_id: str | None = None
        self._uri = uri
        self._monitor: Any = None

    def start(self, run_id: str) -> None:
        """Sample for `run_id`, with steps that go on from those that it has."""
        self.stop()
        try:
            import psutil
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
        except ImportError as error:
            print(f"warning: no system metrics ({error}): pip install psutil", file=sys.stderr, flush=True)
            return
        # The first call of cpu_percent only sets the clock and answers 0, which would be logged as a measurement.
        psutil.cpu_percent()
        self.run_id = run_id
        self._monitor = SystemMetricsMonitor(
            run_id, sampling_interval=_SECONDS_BETWEEN, resume_logging=True, tracking_uri=self._uri
        )
        self._monitor.start()

    def revive(self) -> None:
        """Start again if the monitor gave up, which it does when the store does not answer."""
        thread = getattr(self._monitor, "_process", None)
        if self.run_id is not None and thread is not None and not thread.is_alive():
            self.start(self.run_id)

    def stop(self) -> None:
        """Stop sampling and send what was sampled; the monitor swallows errors of the store."""
        if self._monitor is not None:
            self._monitor.finish()
        self._monitor, self.run_id = None, None
