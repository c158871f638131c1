"""A report's tables as Markdown: scores by method and budget, their costs, quality at the data's diversity; definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pandas as pd

from harness.metrics.base import Column
from harness.report.aggregate import (
    EQUIVALENT,
    ROLES,
    SECONDS,
    aggregate,
    columns_with_bound,
    data_value,
    headline,
    is_below,
    labelled,
    tradeoff,
)
from harness.report.frontier import at_data_diversity
from harness.report.marks import ABOVE, BLIND, above_data

UNKNOWN = "—"
ARROWS = {"lower": "↓", "higher": "↑", "data": "→"}
_BETTER = {"lower": "Lower is better", "higher": "Higher is better", "data": "The data's own value is the aim"}
_BUDGETS = (
    "- **NFE**: calls of a network while sampling one sequence, all of them, counted at the call itself. "
    "**Equivalent NFE**: FLOPs spent in sampling over FLOPs of one call of the baseline's network at the same length. "
    "**Seconds per sequence**: wall clock of sampling on the device named below, over the number of sequences."
)
_PLACES = 17  # of a profile: two periods of eight and one more
_BESIDE = {
    "floor": "a perfect network in the same kind of sampler",
    "probe": "given something that it would have to model",
}


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent between 1e-4 and 1e6; '—' for unknown."""
    if math.isnan(value):
        return UNKNOWN
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size < 6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - size)}f}"


def counted(value: float) -> str:
    """A count with three digits and K, M, B or T for thousands to million millions; '—' for unknown."""
    for power, suffix in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if value >= 10**power:
            return number(value / 10**power) + suffix
    return UNKNOWN if math.isnan(value) else f"{value:.0f}"


def measured(value: float, error: float) -> str:
    """`value ± error`, both to the place of the error's second digit; without '±' where the error is unknown."""
    if math.isnan(value) or math.isnan(error) or math.isinf(value):
        return number(value, 4)
    if error == 0:
        return f"{number(value, 4)} ± 0"
    size = math.floor(math.log10(error))
    if abs(value) >= 1e6 or size < -6:
        return f"{number(value, 4)} ± {number(error, 2)}"
    places = max(0, 1 - size)
    return f"{value:.{places}f} ± {error:.{places}f}"


def best_rows(table: pd.DataFrame, column: Column, aim: float = math.nan) -> set[int]:
    """Index labels of rows that are best among the methods at their NFE, beyond doubt.

    That is: below every other method by `is_below`. Nothing is best alone, or without an error. `aim` is the data's value;
    where that is what counts, distances from it are compared.
    """
    losses = {
        "lower": lambda value: value,
        "higher": lambda value: -value,
        "data": lambda value: abs(value - aim),
    }
    loss = losses[column.better]
    best: set[int] = set()
    methods = table[(table["role"] == "method") & table[column.name].notna()]
    for _, group in methods.groupby("nfe"):
        if len(group) < 2 or group[f"{column.name}_error"].isna().any():
            continue
        order = loss(group[column.name]).dropna().sort_values(kind="stable")
        if len(order) < len(group):
            continue
        own = {
            place: {seed: (loss(value), error) for seed, (value, error) in seeds.items()}
            for place, seeds in group[f"{column.name}_of_seeds"].items()
        }
        first = order.index[0]
        if all(is_below(own[first], own[other]) for other in order.index[1:]):
            best.add(first)
    return best


def budget(row: pd.Series) -> str:
    """NFE of an aggregated row, in brackets latent + token calls, or the mean and the most of an adaptive sampler."""
    if math.isnan(row["nfe"]):
        return UNKNOWN
    if not math.isnan(row["nfe_mean"]):
        return f"{row['nfe']:.0f} (mean {number(row['nfe_mean'])}, max {row['nfe_max']:.0f})"
    split = f" ({row['nfe_latent']:.0f}+{row['nfe_token']:.0f})" if row["nfe_latent"] > 0 else ""
    return f"{row['nfe']:.0f}{split}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|:--" + "|--:" * (len(header) - 1) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def name_of(row: pd.Series) -> str:
    """Label of an aggregated row, with its temperature; in italics what only gives the scale."""
    shown = row["label"]
    if not math.isnan(row["temperature"]) and row["temperature"] != 1.0:
        shown += f", T={row['temperature']:g}"
    return shown if row["role"] == "method" else f"*{shown}*"


def title_of(column: Column, blind: Collection[str], aim: float = math.nan) -> str:
    """Heading of a column: which way is better, the data's value where that is the aim, and whether it is marked as blind."""
    arrow = ARROWS[column.better]
    if column.better == "data" and not math.isnan(aim):
        arrow += f" {number(aim, 4)}"
    return f"{column.heading} {arrow}" + (f" {BLIND}" if column.name in blind else "")


def score_of(row: pd.Series, column: Column, bold: bool, above: bool = False) -> str:
    """A score of an aggregated row with its error; `above`: with the mark of what is above held-out data."""
    text = measured(row[column.name], row[f"{column.name}_error"]) + (f" {ABOVE}" if above else "")
    return f"**{text}**" if bold else text


def results_table(
    frame: pd.DataFrame, columns: Sequence[Column], costs: bool = True, blind: Collection[str] = ()
) -> str:
    """Scores at temperature 1: held-out data first, methods by NFE, floors, probes, the other references; and a caption.

    `frame` is described in `harness.report.aggregate`; it holds one data set and one protocol. `costs`: with the bound and
    what sampling costs. `blind`: names of columns that are marked as such.
    """
    shown = columns_with_bound(columns) if costs else list(columns)
    names = [EQUIVALENT.name, *(column.name for column in shown), SECONDS.name]
    table = aggregate(headline(labelled(frame)), names).reset_index(drop=True)
    header = ["Method", "NFE", *(["Equiv. NFE"] if costs else [])]
    bold, above = dict[str, set[int]](), {column.name: above_data(table, column) for column in shown}
    for column in shown:
        aim = data_value(table, column.name)
        header.append(title_of(column, blind, aim))
        bold[column.name] = best_rows(table, column, aim)
    header += ["Seconds per sequence ↓"] if costs else []
    rows = []
    for role in ROLES:
        for place, row in table[table["role"] == role].iterrows():
            cells = [name_of(row), budget(row), *([number(row[EQUIVALENT.name])] if costs else [])]
            cells += [score_of(row, c, place in bold[c.name], place in above[c.name]) for c in shown]
            seconds, error = row[SECONDS.name], row[f"{SECONDS.name}_error"]
            cells += [number(seconds) if math.isnan(error) else measured(seconds, error)] if costs else []
            rows.append(cells)
    return markdown(header, rows) + (f"\n\n{_caption(table, shown)}" if costs else "")


def score_tables(frame: pd.DataFrame, columns: Sequence[Column], blind: Collection[str] = ()) -> list[str]:
    """The table of scores with their costs, and one of the scores that stand aside, where there are any."""
    main, aside = ([column for column in columns if column.aside is side] for side in (False, True))
    tables = [results_table(frame, main, blind=blind)]
    return [*tables, results_table(frame, aside, costs=False, blind=blind)] if aside else tables


def under_headings(heading: str, tables: Sequence[str]) -> list[str]:
    """`score_tables` as parts of a report."""
    return [f"## {heading}\n\n{tables[0]}", *(f"### More scores\n\n{table}" for table in tables[1:])]


def _caption(table: pd.DataFrame, shown: Sequence[Column]) -> str:
    seeds = sorted(set(table.loc[table["role"] == "method", "seeds"])) or [1]
    parts = ["*In italics: what gives the scale.*"]
    for role, what in _BESIDE.items():
        labels = list(dict.fromkeys(table.loc[table["role"] == role, "label"]))
        if labels:
            parts.append(f"{', '.join(labels)}: {what}; not compared.")
    if (table["nfe_latent"] > 0).any():
        parts.append("NFE counts every call of a network; in brackets, latent + token calls.")
    else:
        parts.append("NFE counts every call of a network.")
    parts.append("Equivalent NFE is the FLOPs of sampling over those of one call of the baseline's network.")
    if seeds == [1]:
        parts.append("One training seed: ± is the standard error within it (resampled sequences or repeats).")
    else:
        count = "–".join(str(part) for part in dict.fromkeys((seeds[0], seeds[-1])))
        parts.append(
            f"Means over {count} training seeds: ± is the standard error over seeds, never below that of resampling "
            "the sequences; for a row with one seed it is the latter."
        )
    how = (
        "its 95 % interval is apart from every other method's"
        if seeds == [1]
        else ("the differences from every other method, seed by seed, are apart from 0 (Student's t, 95 %)")
    )
    parts.append(f"Bold: best method at that NFE, where {how}.")
    if any(column.better == "data" for column in shown):
        parts.append("→ means that the data's own value is the aim.")
    if np.isinf(table[[column.name for column in shown]].to_numpy(dtype=float)).any():
        parts.append("inf: infinite, as where a sample is impossible in the data's own law.")
    parts.append(f"{UNKNOWN}: not defined or not measured.")
    return " ".join(parts)


def profile_table(title: str, rows: Sequence[tuple[str, float | None, Sequence[float]]]) -> str:
    """`### title` and a table of numbers by place for each (label, NFE, numbers): the first places alone of many."""
    places = min(_PLACES, max(len(values) for *_, values in rows))
    body: list[list[str]] = [
        [label, UNKNOWN if nfe is None else f"{nfe:.0f}", *(f"{value:.2f}" for value in values[:places])]
        for label, nfe, values in rows
    ]
    more = f" The first {places}; the others are in the files of scores." if places == _PLACES else ""
    table = markdown(["", "NFE", *map(str, range(places))], body)
    return f"### {title}\n\n{table}\n\nShare of samples, by place from the start of the sequence.{more}"


def cost_table(frame: pd.DataFrame) -> str:
    """Size and cost of each method: parameters, training tokens and FLOPs, FLOPs per sequence at each budget's ends."""
    plain = headline(labelled(frame))
    rows = []
    shown: dict[str, Callable[[float], str]] = {"params": counted, "train_tokens": counted, "train_flops": number}
    for label, group in plain[plain["role"] != "data"].groupby("label", sort=False):
        cells = [str(label)]
        for name, form in shown.items():
            known = sorted(set(group[name].dropna()))
            cells.append(" – ".join(form(v) for v in dict.fromkeys((known[0], known[-1]))) if known else UNKNOWN)
        costs = group.dropna(subset=["flops_per_seq", "nfe"]).sort_values("nfe")
        ends = dict.fromkeys((costs.index[0], costs.index[-1])) if len(costs) else {}
        at = [f"{number(costs.loc[i, 'flops_per_seq'])} at NFE {costs.loc[i, 'nfe']:.0f}" for i in ends]
        cells.append(" – ".join(at) or UNKNOWN)
        cells.append(str(group["seed"].nunique() or UNKNOWN))
        rows.append(cells)
    header = ["Method", "Parameters", "Training tokens", "Training FLOPs", "FLOPs per sequence", "Training seeds"]
    return markdown(header, rows)


def frontier_table(frame: pd.DataFrame, columns: Sequence[Column]) -> str:
    """Quality at the data's diversity, read off each temperature sweep; '' without sweeps or one of the two columns."""
    sides = tradeoff(columns)
    if sides is None:
        return ""
    quality, diversity = sides
    table, aim = at_data_diversity(labelled(frame), quality.name, diversity.name)
    if table.empty:
        return ""
    rows = [
        [
            row["label"],
            f"{row['nfe']:.0f}",
            measured(row["value"], row["error"]),
            number(row["temperature"]),
            f"{row['lowest']:.3f} – {row['highest']:.3f}",
        ]
        for _, row in table.iterrows()
    ]
    header = [
        "Method",
        "NFE",
        f"{quality.title} {ARROWS[quality.better]}",
        "Temperature",
        f"{diversity.title} reached",
    ]
    own = f"{aim:.3f} {diversity.unit}".rstrip()
    caption = (
        f"{diversity.title} as the data's own ({own}), by interpolation of log {quality.title} between the two temperatures "
        f"on either side of it; {UNKNOWN} where the sweep does not reach it."
    )
    return markdown(header, rows) + "\n\n" + caption


def definitions(columns: Sequence[Column]) -> str:
    """`## Definitions`: a line for each column, and one for the budgets, so that no number is read without its meaning."""
    lines = ["## Definitions", ""]
    for column in columns:
        unit = f" ({column.unit})" if column.unit else ""
        meaning = column.meaning or f"column `{column.name}` of the results. {_BETTER[column.better]}"
        lines.append(f"- **{column.title}**{unit}: {meaning}.")
    return "\n".join([*lines, _BUDGETS])
