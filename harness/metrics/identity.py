"""What a metric's number means, as one string: its name, version, definition and every option."""

from __future__ import annotations

import dataclasses
import json

from harness.metrics.base import Metric


def metric_identity(metric: Metric) -> str:
    """JSON with sorted keys; two numbers of a metric are comparable only where these strings are equal."""
    return json.dumps(
        {
            "metric": type(metric).__name__,
            "version": metric.version,
            "definition": getattr(metric, "definition", ""),
            "options": dataclasses.asdict(metric.options),
        },
        sort_keys=True,
    )
