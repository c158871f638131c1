"""From rows of results to what a table or figure shows: one value and one error per method, budget and temperature.

The frame is that of `harness.store.ResultsTable`. A row is of a method and a sampler; `title` is what people call the two,
`role` is "method" for what is compared, "floor" for what a perfect network would score at the same budgets, "probe" for a
method that is given something that it would have to model, "reference" for rows that give the scale, "data" for held-out
data itself (a single reference without an NFE is taken to be that).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics.base import Column

#: In the order of a table.
ROLES = ("data", "method", "floor", "probe", "reference")
#: Those that are drawn as curves over budgets; the others are horizontal lines.
CURVES = ("method", "floor", "probe")
#: The bound belongs to a trained model and not to a budget, so no `Metric` brings it; its column is the schema's.
BOUND = Column(
    "nelbo_nats_per_token",
    "Bound",
    "nats/token",
    "lower",
    meaning="upper bound on -ln p(x) of held-out sequences per token, all latent terms included; exact for methods that "
    "have a likelihood. Only methods that have one are shown",
)
SECONDS = Column("seconds_per_seq", "Time", "s/sequence", "lower")
EQUIVALENT = Column("equivalent_nfe", "Equivalent NFE", "calls of the baseline's network", "lower")
_ERROR_NAMES = {BOUND.name: "nelbo_se"}
KEYS = ("role", "label", "nfe", "temperature")
#: How a budget was spent; the last two where calls differ by sequence.
_OF_BUDGET = ("nfe_latent", "nfe_token", "nfe_mean", "nfe_max")


def error_name(name: str) -> str:
    """The column of a column's standard error."""
    return _ERROR_NAMES.get(name, f"{name}_se")


def labels_of(kinds: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """A label for each (method, sampler) of `kinds` (title, method, sampler): its title, with both where others share it."""
    titles = {(method, sampler): title for title, method, sampler in kinds}
    count = Counter(titles.values())
    return {
        key: title if count[title] == 1 else f"{title} ({', '.join(filter(None, key))})"
        for key, title in titles.items()
    }


def with_labels(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """The frames with a `label` for each method and sampler (see `labels_of`), the same in all of them."""
    names = ["title", "method", "sampler"]
    kinds = [list(f[names].astype("object").fillna("").itertuples(index=False, name=None)) for f in frames]
    labels = labels_of(itertools.chain.from_iterable(kinds))
    return [f.assign(label=[labels[kind[1:]] for kind in own]) for f, own in zip(frames, kinds, strict=True)]


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with labels (unless it has them already) and plain numbers.

    Raises `ValueError` for a role that is none of `ROLES`, and for rows of different data or protocols.
    """
    strange = set(frame["role"].unique()) - set(ROLES)
    if strange:
        raise ValueError(f"role must be one of {ROLES}, not {sorted(map(str, strange))}")
    if frame["protocol"].nunique(dropna=False) > 1 or frame["data"].nunique(dropna=False) > 1:
        raise ValueError("rows of different data or protocols cannot be compared: pass them one at a time")
    made = frame.copy() if "label" in frame else with_labels(frame)[0]
    for name in made.columns:
        if made[name].dtype.kind in "iufb":
            made[name] = made[name].astype("float64")
    bare = made.loc[made["role"] == "reference"].groupby("label")["nfe"].apply(lambda nfe: nfe.isna().all())
    if not (made["role"] == "data").any() and bare.sum() == 1:
        made.loc[made["label"] == bare.idxmax(), "role"] = "data"
    return made


def headline(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at temperature 1, or without one; a method that was only run at others keeps them all."""
    plain = frame["temperature"].isna() | (frame["temperature"] == 1.0)
    has_plain = plain.groupby(frame["label"]).transform("any")
    return frame[plain | ~has_plain]


def combine(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over training seeds; NaN where any seed's value is NaN, infinite where one is infinite.

    One seed: the error that came with the value (a bootstrap over sequences). Several: the spread of the seeds,
    `sd / sqrt(S)`, which holds the sampling noise too; few seeds can agree by chance, so it is never taken to be below
    `sqrt(sum of squared errors) / S`, what sampling alone gives. A mean that is not finite has no error: leaving out the
    seeds that have no value would make a method look better for having failed.
    """
    if not values or not all(map(math.isfinite, values)):
        return sum(values) if values else math.nan, math.nan
    count = len(values)
    if count == 1:
        return values[0], errors[0]
    mean = math.fsum(values) / count
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    sampled = math.sqrt(math.fsum(e * e for e in errors if not math.isnan(e))) / count
    return mean, max(spread, sampled)


def is_below(one: dict[str, tuple[float, float]], other: dict[str, tuple[float, float]]) -> bool:
    """Whether one method's losses, (value, error) by training seed, are below another's beyond doubt, at 95 %.

    With the same seeds the differences seed by seed are compared with 0, since equal seeds share batches and noise; else
    the two intervals must lie apart. Student's t with the number of seeds less one; of one seed, the normal law.
    """
    if len(one) > 1 and one.keys() == other.keys():
        pairs = [(one[seed], other[seed]) for seed in one]
        mean, error = combine([a - b for (a, _), (b, _) in pairs], [math.hypot(e, f) for (_, e), (_, f) in pairs])
        return mean + interval(error, len(pairs)) < 0
    sides = []
    for losses, sign in ((one, 1.0), (other, -1.0)):
        mean, error = combine([v for v, _ in losses.values()], [e for _, e in losses.values()])
        sides.append(mean + sign * interval(error, len(losses)))
    return sides[0] < sides[1]


def interval(error: float, seeds: int) -> float:
    """Half of the 95 % interval of a mean over training seeds with this standard error."""
    if seeds == 1:
        return error * 1.959964
    from scipy.special import stdtrit  # start-up time: all of scipy.stats takes a second

    return error * float(stdtrit(seeds - 1, 0.975))


def aggregate(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per role, label, NFE and temperature, in order of first appearance and rising NFE.

    For each of `names` (absent columns are unknown) the value, as `<name>_error` its error and as `<name>_of_seeds` a dict
    of (value, error) by training seed; `seeds` counts these, `n` is the fewest sequences behind a row, `nfe_latent` and
    `nfe_token` the split of the budget, `nfe_mean` and `nfe_max` the calls of an adaptive sampler.
    """
    rows = []
    for key, group in frame.groupby(list(KEYS), sort=False, dropna=False):
        codes, seeds = pd.factorize(group["seed"], use_na_sentinel=False)
        # Several rows of one seed are repeats of its sampling: they are averaged before seeds are compared.
        of_seeds = [np.flatnonzero(codes == code) for code in range(len(seeds))]
        row: dict[Any, Any] = dict(zip(KEYS, key, strict=True))
        row["seeds"] = int(max(1, group["seed"].nunique()))
        row["n"] = group["n"].min()
        for name in _OF_BUDGET:
            row[name] = group[name].iloc[0] if name in group else math.nan
        for name in names:
            values, errors = (
                group[column].to_numpy(dtype=float) if column in group else np.full(len(group), math.nan)
                for column in (name, error_name(name))
            )
            by_seed = [combine(values[rows_S].tolist(), errors[rows_S].tolist()) for rows_S in of_seeds]
            row[name], row[f"{name}_error"] = combine([v for v, _ in by_seed], [e for _, e in by_seed])
            row[f"{name}_of_seeds"] = dict(zip(map(str, seeds), by_seed, strict=True))
        rows.append(row)
    shown = [part for name in names for part in (name, f"{name}_error", f"{name}_of_seeds")]
    made = pd.DataFrame(rows, columns=[*KEYS, "seeds", "n", *_OF_BUDGET, *shown])
    places = made["label"].map({label: place for place, label in enumerate(dict.fromkeys(made["label"]))})
    ordered = made.assign(_place=places).sort_values(["_place", "nfe", "temperature"], kind="stable")
    return ordered.drop(columns="_place")


def data_value(table: pd.DataFrame, name: str) -> float:
    """The value of held-out data itself in an aggregated table, NaN without such a row."""
    rows = table.loc[table["role"] == "data", name]
    return float(rows.iloc[0]) if len(rows) else math.nan


def tradeoff(columns: Sequence[Column]) -> tuple[Column, Column] | None:
    """The first column of quality and the first of diversity, where there are both."""
    sides = [[column for column in columns if column.tradeoff == side] for side in ("quality", "diversity")]
    return (sides[0][0], sides[1][0]) if all(sides) else None


def columns_with_bound(columns: Sequence[Column]) -> list[Column]:
    """The metrics' columns, and the bound after them unless a metric brought it."""
    return [*columns, *([] if any(column.name == BOUND.name for column in columns) else [BOUND])]
