"""Which row is best beyond doubt, where there are several training seeds."""

from __future__ import annotations

import pytest

from harness.report.aggregate import aggregate, interval, is_below, labelled
from harness.report.table import best_rows
from tests.report.test_report import COLUMNS, _frame, _row


def test_intervals_are_those_of_student():
    assert interval(1.0, 1) == pytest.approx(1.96, abs=1e-3) and interval(1.0, 3) == pytest.approx(4.303, abs=1e-3)
    assert is_below({"0": (1.0, 0.1)}, {"0": (1.5, 0.1)}) and not is_below({"0": (1.0, 0.1)}, {"0": (1.38, 0.1)})


def test_few_seeds_are_told_apart_by_student_and_by_pairs():
    """Three seeds have t = 4.30 and not 1.96; seeds that share their noise are compared one by one."""

    def winners(*methods):
        rows = [
            _row(f"M{i}", "method", 4, ppl, 4.0, 0.5, gen_ppl_se=0.01, seed=seed)
            for i, values in enumerate(methods)
            for seed, ppl in values.items()
        ]
        table = aggregate(labelled(_frame(rows)), ["gen_ppl"]).reset_index(drop=True)
        return best_rows(table, COLUMNS[0])

    assert winners({0: 9.0, 1: 10.0, 2: 11.0}, {3: 12.0, 4: 13.0, 5: 14.0}) == set(), "3 +- 1.96 * .58 would lie apart"
    assert winners({0: 9.0, 1: 10.0, 2: 11.0}, {3: 15.0, 4: 16.0, 5: 17.0}) == {0}
    assert winners({0: 9.0, 1: 10.0, 2: 11.0}, {0: 9.5, 1: 10.6, 2: 11.4}) == {0}, "seed by seed it is always lower"
    assert winners({0: 9.0, 1: 10.0, 2: 11.0}, {0: 9.5, 1: 9.7, 2: 11.4}) == set()
