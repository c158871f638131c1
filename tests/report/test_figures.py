"""What figures say of themselves, the files of each, and the table for a paper."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.metrics.base import Column
from harness.report import canvas, figures
from harness.report.aggregate import labelled, with_labels
from harness.report.latex import latex_table
from harness.store import ResultsTable
from tests.report.test_report import COLUMNS, ROWS


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Figures as they are when they are written; no file is."""
    kept = []
    monkeypatch.setattr(figures, "write_figure", lambda figure, path: kept.append(figure) or path)
    return kept


def _frame() -> pd.DataFrame:
    (frame,) = with_labels(ResultsTable(ROWS).frame())
    return labelled(frame)


def _labels(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_band_is_explained_in_the_figure(drawn, tmp_path):
    figures.scores(_frame(), COLUMNS[0], "nfe", tmp_path / "a.png")
    assert _labels(drawn[0])[-1] == "band: ± one standard error"


def test_each_budget_stands_beside_its_point(drawn, tmp_path):
    quality, diversity = COLUMNS[:2]
    frame = _frame()
    figures.plane(frame, (quality, diversity), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    methods = frame[frame["role"] == "method"]
    points = {(round(x, 6), round(y, 6)) for x, y in zip(methods[diversity.name], methods[quality.name], strict=True)}
    notes = [text for text in axes.texts if text.get_text().isdigit()]
    assert notes and {(round(float(x), 6), round(float(y), 6)) for x, y in (text.xy for text in notes)} <= points
    assert "number: NFE" in _labels(drawn[0])


def test_no_text_is_cut(drawn, tmp_path):
    """Long names too: all that is written lies within the figure."""
    long = Column("gen_ppl", "Perplexity of what is drawn under a judge", "perplexity per token of the judge", "lower")
    frame = _frame()
    frame["label"] = frame["label"] + " with a name that goes on"
    figures.scores(frame, long, "equivalent_nfe", tmp_path / "a.png")
    figure = drawn[0]
    figure.draw_without_rendering()
    renderer, box = figure.canvas.get_renderer(), figure.bbox
    (axes,) = figure.axes
    texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for text in (t for t in texts if t.get_text()):
        size = text.get_window_extent(renderer)
        assert size.x0 >= box.x0 - 1 and size.x1 <= box.x1 + 1 and size.y0 >= box.y0 - 1, text.get_text()


def test_many_methods_make_a_figure_longer_and_leave_its_panel_high(drawn, tmp_path):
    """Twenty names under a panel, and nothing of its label is cut."""
    frame = _frame()
    many = pd.concat([frame.assign(label=f"{frame['label'].iloc[0]} number {i}") for i in range(20)])
    for each in (frame, many):
        figures.scores(each, COLUMNS[0], "nfe", tmp_path / "a.png")
    heights = []
    for figure in drawn:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        heights.append(axes.get_window_extent().height)
        label = axes.yaxis.label.get_window_extent(figure.canvas.get_renderer())
        assert label.y0 >= 0 and label.y1 <= figure.bbox.y1
    assert heights[1] > 0.9 * heights[0] and len(_labels(drawn[1])) > 15


def test_pdf_and_svg_stand_beside_the_png_and_are_equal_for_equal_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(canvas, "VECTORS", ("pdf", "svg"))
    for name in ("a", "b"):
        figures.scores(_frame(), COLUMNS[0], "nfe", tmp_path / f"{name}.png")
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.{kind}" for n in "ab" for kind in ("png", "pdf", "svg")}
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        one, other = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert one == other and one.startswith(begins)


def test_a_table_for_a_paper():
    markdown = "| Method | a_b ↓ |\n|:--|--:|\n| *Data* | 3 ± 1 |\n| MDLM, 50 % | **2 ± 1** |\n\nBold: 95 % & more."
    assert latex_table(markdown).splitlines() == [
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", r"\begin{tabular}{lr}", r"\toprule",
        r"Method & a\_b $\downarrow$ \\", r"\midrule", r"\emph{Data} & 3 $\pm$ 1 \\", r"MDLM, 50 \% & \textbf{2 $\pm$ 1} \\",
        r"\bottomrule", r"\end{tabular}", r"\caption{Bold: 95 \% \& more.}", r"\end{table}",
    ]  # fmt: skip
