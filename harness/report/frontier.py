"""Quality at matched diversity.

Low temperatures buy quality with diversity, so methods are compared where their samples are as diverse as the data.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from harness.report.aggregate import aggregate, data_value

_COLUMNS = ["label", "nfe", "value", "error", "temperature", "lowest", "highest"]


def at_data_diversity(frame: pd.DataFrame, quality: str, diversity: str) -> tuple[pd.DataFrame, float]:
    """For each label and NFE that was run at two or more temperatures, its quality where its diversity is the data's.

    Returns a table with label, nfe, value (of the quality), error (its standard error), temperature, lowest and highest
    diversity of the sweep, and the data's diversity. Between the two neighbouring temperatures the logarithm of the quality
    is linear in the diversity; there is no extrapolation: NaN outside the sweep.
    """
    table = aggregate(frame, [quality, diversity])
    aim = data_value(table, diversity)
    rows = []
    methods = table[(table["role"] != "data") & table[quality].notna() & table[diversity].notna()]
    for (label, nfe), group in methods.groupby(["label", "nfe"], sort=False):
        if group["temperature"].nunique() < 2 or math.isnan(aim):
            continue
        swept = group.sort_values("temperature")
        crossing = _cross(swept, quality, diversity, aim)
        rows.append((label, nfe, *crossing, swept[diversity].min(), swept[diversity].max()))
    return pd.DataFrame(rows, columns=_COLUMNS), aim


def _cross(swept: pd.DataFrame, quality: str, diversity: str, aim: float) -> tuple[float, float, float]:
    """Quality, its error and the temperature at the first crossing of `aim`, going up in temperature."""
    reached = swept[diversity].to_numpy()
    for i in range(len(reached) - 1):
        left, right = reached[i], reached[i + 1]
        if left == right or not min(left, right) <= aim <= max(left, right):
            continue
        w = (aim - left) / (right - left)
        weights = np.array([1 - w, w])
        pair = swept.iloc[i : i + 2]
        values = pair[quality].to_numpy()
        value = float(np.exp(weights @ np.log(values)))
        relative = pair[f"{quality}_error"].to_numpy() / values
        error = value * float(np.sqrt(((weights * relative) ** 2).sum()))
        return value, error, float(weights @ pair["temperature"].to_numpy())
    return math.nan, math.nan, math.nan
