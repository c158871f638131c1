"""Links into MLflow's pages."""

from __future__ import annotations

from urllib.parse import quote

#: All runs of an experiment side by side as charts, in the view for training: MLflow opens in another one by itself, and
#: shows parents alone unless runs are in the order of something else than time.
_CHARTS = "compareRunsMode=CHART&workflowType=machine_learning&orderByAsc=true&orderByKey=" + quote(
    "tags.`mlflow.runName`"
)


def charts(server: str, experiment: str) -> str:
    """Where the runs of an experiment (its id) are compared as charts."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{_CHARTS}"
