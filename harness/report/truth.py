"""Distances of laws from the data's own, where that is known: of the bound, and of what a sampler draws at each budget."""

from __future__ import annotations

import pandas as pd

from harness.report.aggregate import ROLES, aggregate, headline, labelled
from harness.report.table import UNKNOWN, markdown, measured

#: Columns of the results that only data with a known law have, nats per sequence; each with `<name>_se`.
BOUND_EXCESS, REVERSE, PATH = TRUTH = ("bound_excess_nats", "reverse_nats", "path_nats")
_ROUNDING = 1e-9  # nats: a likelihood that is the truth itself differs from it by the order of its sums
_CAPTION = (
    "Nats per sequence from the true law p, over held-out sequences ± standard error; 0 is the truth. "
    "**Bound**: mean of (bound on -log q(x)) + log p(x), which is KL(p ‖ q) and the bound's own slack; exact for a "
    "likelihood, and then also the distance of what is sampled. "
    "**NFE**: the same for the sampler of that many calls, from the probabilities along random paths (which positions are "
    "revealed in which call): one path bounds KL(p ‖ q_K) from above, several bound it more closely; where the two rows are "
    "equal only one was drawn, as more calls leave fewer paths. {unknown}: the method has none."
)


def truth_section(frame: pd.DataFrame) -> str:
    """`### Against the truth` with a table: two rows of budgets for a method with paths, one for the others; '' without.

    `frame` is described in `harness.report.aggregate`; it holds one data set and one protocol.
    """
    if not any(name in frame and frame[name].notna().any() for name in TRUTH):
        return ""
    table = aggregate(headline(labelled(frame)), TRUTH)
    known = table[table[list(TRUTH)].notna().any(axis=1)]
    budgets = sorted(set(known.loc[known[PATH].notna(), "nfe"]))
    rows = []
    for role in ROLES:
        for label, group in known[known["role"] == role].groupby("label", sort=False):
            name = str(label) if role == "method" else f"*{label}*"
            bounded = group[group[BOUND_EXCESS].notna()]
            bound = _shown(bounded.iloc[0], BOUND_EXCESS) if len(bounded) else UNKNOWN
            if group[PATH].notna().any():
                rows.append([name, bound, "several paths", *_over(group, REVERSE, budgets)])
                rows.append(["", "", "one path", *_over(group, PATH, budgets)])
            else:
                exact = " (exact)" if group[REVERSE].notna().any() else ""
                rows.append([name, bound + exact, "", *[UNKNOWN] * len(budgets)])
    header = ["Method", "Bound", "Sampler", *(f"NFE {nfe:.0f}" for nfe in budgets)]
    return f"### Against the truth\n\n{markdown(header, rows)}\n\n{_CAPTION.format(unknown=UNKNOWN)}"


def _over(group: pd.DataFrame, name: str, budgets: list[float]) -> list[str]:
    """One cell for each budget; '—' where the method was not run."""
    by_nfe = {row["nfe"]: _shown(row, name) for _, row in group.iterrows()}
    return [by_nfe.get(nfe, UNKNOWN) for nfe in budgets]


def _shown(row: pd.Series, name: str) -> str:
    value, error = (0.0 if abs(part) < _ROUNDING else part for part in (row[name], row[f"{name}_error"]))
    return measured(value, error)
