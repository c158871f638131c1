"""What is marked where it is read: rows that copy more than text does, and what a judge that is too weak cannot rank."""

from __future__ import annotations

import dataclasses

from harness.metrics.base import Column
from harness.report.marks import blind, resolutions
from harness.report.report import write_report
from harness.report.table import profile_table, results_table
from harness.report.terminal import terminal_table
from tests.report.test_report import COLUMNS, _frame, _row

COPIED = Column("copied_8", "Copied 8-grams", "share", "data", aside=True, ceiling=True)


def row(title: str, role: str, nfe: int | None, copied: float, error: float = 0.01):
    return _row(title, role, nfe, 30.0, 4.5, 0.5, copied_8=copied, copied_8_se=error)


ROWS = [
    row("Held-out data", "data", None, 0.30),
    row("Pastes", "method", 2, 0.50),
    row("Near", "method", 2, 0.32),
    row("Unsure", "method", 2, 0.90, 0.5),
    row("Counts", "reference", 0, 0.45),
]


def test_a_row_above_held_out_text_is_marked_where_the_intervals_are_apart():
    text = results_table(_frame(ROWS), [COPIED], costs=False)
    marked = [line.split("|")[1].strip() for line in text.splitlines() if "▲" in line]
    assert marked == ["Pastes", "*Counts*"] and "Equiv" not in text and "Bound" not in text
    plain = dataclasses.replace(COPIED, ceiling=False)
    assert "▲" not in results_table(_frame(ROWS), [plain], costs=False)


def test_the_terminal_marks_the_row_though_it_does_not_show_the_column():
    text = terminal_table(_frame(ROWS), [*COLUMNS, COPIED])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if "▲" in line and "±" in line] == ["Pastes", "Counts"]
    assert "Copied 8-grams" not in lines[0] and "(▲ above held-out data's own value in Copied 8-grams" in text


def test_a_profile_shows_its_first_places():
    text = profile_table("By offset", [("Alpha", 2, [0.5, 0.25]), ("Data", None, [0.125, 0.5])])
    assert "| Alpha | 2 | 0.50 | 0.25 |" in text and "| Data | — | 0.12 | 0.50 |" in text and "others" not in text
    assert "| 16 |\n" in profile_table("By offset", [("Alpha", 2, [0.5] * 40)])


# ---- resolution -------------------------------------------------------------------------------------------------------
PER_CHAR = Column("nats", "Nats/char", "nats", "lower", aside=True, least_gap=0.3)
PPL = Column("gen_ppl", "Gen. perplexity", "", "lower", judged_by="nats", tradeoff="quality")
MAUVE = Column("mauve", "MAUVE", "", "higher", least_gap=0.2)


def judged(title: str, role: str, nfe: int | None, nats: float, mauve: float):
    return _row(title, role, nfe, 30.0, 4.5, mauve, nats=nats, nats_se=0.01)


def study(best: float) -> list[dict]:
    """Held-out text at 1.5 nats; counts are better or worse, and only they call no network."""
    return [
        judged("Held-out data", "data", None, 1.5, 0.96),
        judged("Alpha", "method", 2, 3.0, 0.4),
        judged("5-gram", "reference", 0, best, 0.70),
        judged("Bigram", "reference", 0, 3.5, 0.1),
        judged("Autoregressive", "reference", 64, 1.6, 0.95),
    ]


def test_text_is_held_against_the_best_row_that_calls_no_network():
    nats, mauve = resolutions(_frame(study(2.03)), [PPL, MAUVE, PER_CHAR])[::-1]
    assert (nats.label, round(nats.gap, 6), nats.resolves) == ("5-gram", 0.53, True) and "0.3 is enough" in str(nats)
    assert (mauve.label, round(mauve.gap, 6), mauve.resolves) == ("5-gram", 0.26, True)
    assert resolutions(_frame(study(2.0)[:2]), [PER_CHAR]) == [], "nothing to hold it against"
    assert resolutions(_frame(study(2.0)[1:]), [PER_CHAR]) == [] and resolutions(_frame(study(2.0)), [PPL]) == []


def test_a_judge_that_does_not_resolve_marks_its_columns_and_says_so(tmp_path):
    columns = [PPL, MAUVE, PER_CHAR]
    for best, apart in ((1.6, 0.1), (1.4, -0.1)):
        found = resolutions(_frame(study(best)), columns)
        assert blind(found, columns) == {"gen_ppl", "nats"} and f"{apart:.3f} apart, less than 0.3: †" in str(found[1])
        lines = write_report(tmp_path, _frame(study(best)), columns, {"notes": ["made up"]}).read_text().splitlines()
        assert lines[2].startswith("- Resolution, MAUVE: held-out data 0.960") and lines[3] == f"- {found[1]}"
        header, aside = (line for line in lines if line.startswith("| Method | NFE |") and "Param" not in line)
        assert "Gen. perplexity ↓ †" in header and "MAUVE ↑ |" in header and "(nats) ↓ †" in aside
        shown = terminal_table(_frame(study(best)), columns)
        assert "Gen. perplexity †" in shown.splitlines()[0] and " ".join(str(found[1]).split()) in " ".join(
            shown.split()
        )
