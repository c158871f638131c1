"""What a report begins with."""

from __future__ import annotations

from harness.report.opening import opening
from harness.report.report import write_report
from tests.report.test_report import COLUMNS, ROWS, _frame

SAMPLES = [
    {"title": "Data", "nfe": None, "temperature": 1.0, "text": "held `out`\n| text"},
    {"title": "Alpha", "nfe": 2, "temperature": 1.0, "text": "at two"},
    {"title": "Alpha", "nfe": 4, "temperature": 0.7, "text": "at four, cold"},
    {"title": "Alpha", "nfe": 4, "temperature": 1.0, "text": "at four"},
    {"title": "Alpha", "nfe": 64, "temperature": 1.0, "text": "at many"},
    {"title": "Beta", "nfe": 64, "temperature": 1.0, "text": "x" * 300},
]


def test_the_samples_are_those_nearest_to_four_calls_and_break_no_table(tmp_path):
    table = opening(tmp_path, COLUMNS, SAMPLES).splitlines()[-3:]
    assert table[0] == "| Data | — | `held 'out' \\| text` |"
    assert table[1] == "| Alpha | 4 | `at four` |"
    assert table[2] == f"| Beta | 64 | `{'x' * 100} ...` |"


def test_a_report_shows_quality_against_cost_before_any_table(tmp_path):
    text = write_report(tmp_path, _frame(ROWS), COLUMNS, {"samples": SAMPLES}).read_text(encoding="utf-8")
    first = text.index("![Gen. perplexity against the cost of sampling](figures/gen_ppl_equivalent_nfe.png)")
    assert text.index("## At a glance") < first < text.index("| Alpha | 4 | `at four` |") < text.index("## Scores")
    assert (tmp_path / "figures" / "gen_ppl_equivalent_nfe.png").exists()


def test_nothing_to_show_is_no_heading(tmp_path):
    assert opening(tmp_path, COLUMNS, []) == "" and opening(tmp_path, [], []) == ""
