"""What a terminal shows of the scores, the report as one page of HTML, and the link into MLflow."""

from __future__ import annotations

import base64

from harness.metrics.base import Column
from harness.report.html import write_html
from harness.report.terminal import WIDTH, markdown_table, terminal_table
from harness.tracking.link import charts
from tests.report.test_report import COLUMNS, ROWS, _frame, _row

LONG = _row("A method with a name that is much too long for a row", "method", 4, 12345.6, 4.0, 0.5, gen_ppl_se=1234.5)


def test_the_table_fits_and_says_what_it_left_out():
    more = [Column(f"score{i}", f"A further score {i}", "nats", "lower") for i in range(4)]
    text = terminal_table(_frame([*ROWS, LONG]), [*COLUMNS, *more])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert " ".join(text.split()).endswith("A further score 3, Bound: in the report)")
    lines = [line for line in text.splitlines() if line.startswith("Alpha")]
    assert [line.split()[1] for line in lines] == ["2", "4"] and "60.0 ± 1.0" in lines[0]
    assert "A method with a name ..." in text


def test_an_adaptive_row_shows_what_its_budget_was_spent_on():
    row = _row("Gamma", "method", 8, 50.0, 4.0, 0.5, nfe_mean=7.85, nfe_max=12)
    lines = [line.split("  ") for line in terminal_table(_frame([*ROWS, row]), COLUMNS).splitlines()]
    assert "8 (mean 7.85, max 12)" in next([part.strip() for part in line] for line in lines if line[0] == "Gamma")


def test_the_same_in_markdown():
    text = markdown_table(_frame(ROWS), COLUMNS)
    assert text.splitlines()[0].startswith("| Method | NFE |") and "| Alpha | 2 | 60.0 ± 1.0 |" in text


def test_a_page_holds_its_figures_and_no_sample_can_change_it(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"picture")
    text = "# A & B\n\n| x | y |\n|:--|--:|\n| 1 | 2 |\n\n![A](figures/a.png)\n\n<script>alert(1)</script>\n"
    (tmp_path / "report.md").write_text(text)
    page = write_html(tmp_path / "report.md").read_text()
    assert "<title>A &amp; B</title>" in page and "<table>" in page and "<script>" not in page
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in page and "figures/" not in page


def test_the_link_opens_the_charts_of_all_runs():
    link = charts("http://127.0.0.1:5000/", "7")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    for part in ("compareRunsMode=CHART", "workflowType=machine_learning", "orderByKey=tags.%60mlflow.runName%60"):
        assert part in link
