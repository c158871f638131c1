"""Budgets of equal sampling FLOPs: the most calls that fit, whatever a call costs, and the table of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.config.load import load
from harness.nn.slices import unshared
from harness.report.equal import equal_rows, equal_table, strict_rows
from harness.study.budget import COUNTED_SEQUENCES, count_flops, full_call_flops
from harness.study.cells import make_cells
from harness.study.equivalent import most_calls
from harness.study.session import Session
from harness.training.seeds import step_generator
from tests.report.test_report import COLUMNS, ROWS, _frame, _row


@pytest.mark.parametrize("a, b", [(0.0, 1.0), (0.4, 0.05), (1.7, 0.33), (3.0, 1.0), (0.0, 0.001)])
def test_the_most_calls_that_fit(a, b):
    for limit in (1.0, 2.0, 5.5, 16.0):
        asked = []

        def cost(k, asked=asked):
            asked.append(k)
            return a + b * k

        most = most_calls(cost, limit)
        assert most == min(max(math.floor((limit - a) / b + 1e-9), 0), int(16 * limit))
        assert len(asked) <= 12, "counting is a draw each"


def test_costs_in_steps_are_met_too():
    assert most_calls(lambda k: 2.0 * math.ceil(k / 4), 6.0) == 12


def _session(tmp_path, *more):
    return Session(
        load(
            ["study=smoke", "data=stdlib", "compute.device=cpu", f"runs_dir={tmp_path / 'r'}", f"cache_dir={tmp_path}"]
            + ["tracking.enabled=false", "study.equivalent_nfe=[2,5]", *more]
        ).tree
    )


def counted(sampler, nfe: int) -> float:
    """FLOPs for a sequence, as they are counted when a study draws its samples."""
    with unshared():
        return count_flops(lambda: sampler.draw(COUNTED_SEQUENCES, nfe, step_generator("cpu", 3))) / COUNTED_SEQUENCES


def test_each_sampler_has_as_many_calls_as_its_networks_cost(tmp_path):
    session = _session(tmp_path)
    cells = {f"{c.method}/{c.sampler}": c for c in make_cells(session)}
    strict, unit = set(session.cfg.study.nfe), full_call_flops(session.problem)
    assert {p.nfe for p in cells["mdlm/ancestral"].parts} == strict | {2, 5}, "a call of the baseline costs one"
    assert max(p.nfe for p in cells["seq/diffusion"].parts) > 5, "its latent's network is cheap"
    for method, label in (("seq", "diffusion"), ("seq_discrete", "codes")):
        most = max(p.nfe for p in cells[f"{method}/{label}"].parts)
        sampler = session.sampler(session.build(method), method, label)
        costs = [counted(sampler, k) / unit for k in (most, most + 1)]
        assert costs[0] <= 5 < costs[1], method
    kept = list((session.cache / "sampling_flops").glob("*.json"))
    assert kept and not (tmp_path / "r").exists()
    kept[0].write_text("torn")
    assert [c.parts for c in make_cells(session)] == [c.parts for c in cells.values()]
    none = _session(tmp_path, "study.equivalent_nfe=[]")
    assert {p.nfe for c in make_cells(none) if c.method == "mdlm" for p in c.parts} == strict


def test_a_budget_of_a_mean_is_the_strict_one(tmp_path):
    row = ["methods.mdlm.samplers.entropy_bounded={}", "only=[mdlm/entropy_bounded]"]
    (cell,) = make_cells(_session(tmp_path, *row))
    assert {2, 5} <= {part.nfe for part in cell.parts} and not (tmp_path / "sampling_flops").exists()


def test_the_table_takes_of_each_method_what_spends_most_of_the_budget():
    rows = equal_rows(_frame(ROWS), COLUMNS, [2, 4, 8])
    got = rows[["equal_budget", "label", "nfe"]].values.tolist()
    assert got == [[2, "Alpha", 2], [4, "Alpha", 4], [4, "Beta", 4], [8, "Alpha", 4], [8, "Beta", 4]]
    table = equal_table(_frame(ROWS), COLUMNS, [4])
    assert "| Beta | 4.00 | 4 (2+2) | 2.50 | 37.5 ± 1.0 | **0.800 ± 0.010** |" in table
    assert "MAUVE ↑ †" in equal_table(_frame(ROWS), COLUMNS, [4], {"mauve"}), "marked where it is read"
    assert equal_table(_frame(ROWS), COLUMNS, []) == "" and equal_table(_frame(ROWS[:2]), COLUMNS, [4]) == ""
    over = _row("Over", "method", 4, 1.0, 4.0, 0.9, equivalent_nfe=4.1)
    assert "Over" not in set(equal_rows(_frame([*ROWS, over]), COLUMNS, [4])["label"])
    assert np.isfinite(rows["mauve"]).all()


def test_the_other_tables_have_the_strict_budgets_alone():
    lone = _row("Lone", "method", 64, 4.0, 4.0, 0.9, equivalent_nfe=64)
    more = _row("Beta", "method", 7, 30.0, 4.4, 0.8, equivalent_nfe=4)
    frame = _frame([*ROWS, lone, more])
    kept = strict_rows(frame, [2, 4])
    gone = frame.drop(kept.index)
    assert gone[["title", "nfe"]].values.tolist() == [["Beta", 7]], "what has no other budget stays"
    assert strict_rows(frame, []).equals(frame)
