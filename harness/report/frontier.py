"""Generative perplexity at matched entropy.

Low temperatures buy perplexity with diversity, so methods are compared where their samples are as diverse as the data.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from harness.report.aggregate import aggregate, data_value


def at_entropy(frame: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """For each method and NFE that was run at two or more temperatures, perplexity where its entropy is the data's.

    Returns a table with label, nfe, gen_ppl, error (its standard error), temperature, lowest and highest entropy of the
    sweep, and the data's entropy in nats. Between the two neighbouring temperatures log perplexity is linear in the
    entropy; there is no extrapolation: NaN outside the sweep.
    """
    table = aggregate(frame, ["gen_ppl", "entropy"])
    aim = data_value(table, "entropy")
    rows = []
    methods = table[(table["role"] != "data") & table["gen_ppl"].notna() & table["entropy"].notna()]
    for (label, nfe), group in methods.groupby(["label", "nfe"], sort=False):
        if group["temperature"].nunique() < 2 or math.isnan(aim):
            continue
        swept = group.sort_values("temperature")
        value, error, temperature = _cross(swept, aim)
        rows.append(
            {
                "label": label,
                "nfe": nfe,
                "gen_ppl": value,
                "error": error,
                "temperature": temperature,
                "lowest": swept["entropy"].min(),
                "highest": swept["entropy"].max(),
            }
        )
    return pd.DataFrame(rows), aim


def _cross(swept: pd.DataFrame, aim: float) -> tuple[float, float, float]:
    """Perplexity, its error and the temperature at the first crossing of `aim`, going up in temperature."""
    entropy = swept["entropy"].to_numpy()
    for i in range(len(entropy) - 1):
        left, right = entropy[i], entropy[i + 1]
        if left == right or not min(left, right) <= aim <= max(left, right):
            continue
        w = (aim - left) / (right - left)
        weights = np.array([1 - w, w])
        pair = swept.iloc[i : i + 2]
        value = float(np.exp(weights @ np.log(pair["gen_ppl"].to_numpy())))
        relative = pair["gen_ppl_error"].to_numpy() / pair["gen_ppl"].to_numpy()
        error = value * float(np.sqrt(((weights * relative) ** 2).sum()))
        return value, error, float(weights @ pair["temperature"].to_numpy())
    return math.nan, math.nan, math.nan
