"""Distances from the data's own law: the section of a report, and what is logged of them."""

from __future__ import annotations

import math

import pytest

from harness.metrics.base import Column
from harness.report.report import write_report
from harness.report.suite import TaskResults, write_suite_report
from harness.report.truth import TRUTH, truth_section
from harness.store import ResultsTable
from harness.study.runs import logged_scores

EXCESS = Column("excess_nats", "Excess", "nats", "lower")


def _row(title, role, nfe, bound=None, several=None, one=None, task="one", **more):
    row = dict(study=f"s/{task}", data=task, method=title.lower(), title=title, role=role, sampler="x", seed=0, n=100)
    row |= dict(nfe=nfe, protocol="p1", temperature=1.0, excess_nats=3.0, excess_nats_se=0.1, equivalent_nfe=nfe)
    row |= dict(bound_excess_nats=bound, bound_excess_nats_se=None if bound is None else 0.1)
    row |= dict(reverse_nats=several, reverse_nats_se=None if several is None else 0.2)
    return row | dict(path_nats=one, path_nats_se=None if one is None else 0.3) | more


ROWS = [
    _row("Data", "data", None),
    _row("Alpha", "method", 1, 5.0, 20.0, 20.0),
    _row("Alpha", "method", 4, 5.0, 3.0, 4.0),
    _row("Alpha", "method", 4, 5.0, None, None, temperature=0.5),
    _row("Beta", "method", 4, 6.0),
    _row("Gamma", "method", 4),
    _row("Oracle", "floor", 2, 1e-13, 6.5, 9.6, bound_excess_nats_se=1e-14),
    _row("Unigram", "reference", 0, 30.0, 30.0),
]


def _frame(*rows):
    return ResultsTable(rows).frame()


def test_section_to_the_letter():
    assert truth_section(_frame(*ROWS)).split("\n\n")[:2] == [
        "### Against the truth",
        "\n".join(
            [
                "| Method | Bound | Sampler | NFE 1 | NFE 2 | NFE 4 |",
                "|:--|--:|--:|--:|--:|--:|",
                "| Alpha | 5.00 ± 0.10 | several paths | 20.00 ± 0.20 | — | 3.00 ± 0.20 |",
                "|  |  | one path | 20.00 ± 0.30 | — | 4.00 ± 0.30 |",
                "| Beta | 6.00 ± 0.10 |  | — | — | — |",
                "| *Oracle* | 0 ± 0 | several paths | — | 6.50 ± 0.20 | — |",
                "|  |  | one path | — | 9.60 ± 0.30 | — |",
                "| *Unigram* | 30.00 ± 0.10 (exact) |  | — | — | — |",
            ]
        ),
    ]


def test_no_section_where_the_law_is_not_known():
    assert truth_section(_frame(ROWS[0], ROWS[5])) == ""
    bare = {key: value for key, value in ROWS[1].items() if not key.startswith(("bound_", "reverse_", "path_"))}
    assert truth_section(_frame(bare)) == ""


def test_seeds_are_averaged_and_bounds_alone_have_no_columns_of_budgets():
    rows = [_row("Beta", "method", 4, 6.0 + s, seed=s) for s in range(3)]
    lines = truth_section(_frame(*rows)).splitlines()
    assert lines[2] == "| Method | Bound | Sampler |" and lines[4] == "| Beta | 7.00 ± 0.58 |  |"


def test_both_reports_have_the_section(tmp_path):
    text = write_report(tmp_path / "one", _frame(*ROWS), [EXCESS], {}).read_text()
    assert text.index("## Scores") < text.index("### Against the truth") < text.index("### Cost")
    other = _frame(
        *({k: v for k, v in r.items() if "nats" not in k or "excess_nats" in k[:11]} | {"data": "b"} for r in ROWS)
    )
    tasks = [TaskResults("one", _frame(*ROWS), 8, [EXCESS]), TaskResults("bare", other, 8, [EXCESS])]
    text = write_suite_report(tmp_path / "all", tasks, {}).read_text()
    assert text.count("### Against the truth") == 1
    assert text.index("## one") < text.index("### Against the truth") < text.index("## bare")


@pytest.mark.parametrize("known", [True, False])
def test_distances_are_logged_where_they_are_known(known):
    row = ROWS[2] | {"time_ms": 5, "excess_nats": math.inf}
    if not known:
        row = {k: v for k, v in row.items() if not k.startswith(("bound_", "reverse_", "path_"))}
    scores = logged_scores(row, [EXCESS])
    assert scores["results/excess_nats"] == math.inf and scores["standard_errors/excess_nats"] == 0.1
    names = [place for name in TRUTH for place in (f"scores_other/{name}", f"standard_errors/{name}")]
    assert [scores[name] for name in names] == ([5.0, 0.1, 3.0, 0.2, 4.0, 0.3] if known else [None] * 6)
