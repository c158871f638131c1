"""Floors and probes in tables and figures, axes that show values near 0, and the report of several tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.metrics.base import Column
from harness.report import figures, growth, suite
from harness.report.aggregate import aggregate, labelled
from harness.report.axes import linear_range
from harness.report.suite import TaskResults, panels, write_suite_report
from harness.report.table import best_rows, results_table
from harness.store import ResultsTable

EXCESS = Column("excess_nats", "Excess", "nats", "lower")


def _row(title, role, nfe, value, error=0.1, task="one", **more):
    row = dict(study=f"s/{task}", data=task, method=title.lower(), title=title, role=role, sampler="x", seed=0, n=100)
    row |= dict(nfe=nfe, protocol="p1", temperature=1.0, excess_nats=value, excess_nats_se=error)
    return row | dict(equivalent_nfe=nfe, seconds_per_seq=0.1) | more


def _frame(*rows):
    return ResultsTable(rows).frame()


FLOOR = [_row("Oracle", "floor", k, v) for k, v in ((1, 20.0), (2, 9.0), (4, 1.0))]
METHOD = [_row("Alpha", "method", k, v) for k, v in ((1, 30.0), (2, 12.0), (4, 2.0))]
PROBE = [_row("Told", "probe", k, v) for k, v in ((1, 15.0), (2, 10.0), (4, 1.5))]
SCALE = [_row("Data", "data", None, 0.02), _row("Unigram", "reference", 0, 40.0)]


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Axes of the figures that are saved from here on."""
    axes: list = []

    def keep(figure, panels, path, *width):
        axes.extend(panels)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(suite, "save", keep)
    return axes


def _line(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


# ---- floors and probes --------------------------------------------------------------------------------------------------
def test_table_lists_floors_and_probes_after_the_methods_and_before_the_references():
    text = results_table(_frame(*PROBE, *FLOOR, *SCALE, *METHOD), [EXCESS])
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:] if line.startswith("|")]
    assert names == ["*Data*", *["Alpha"] * 3, *["*Oracle*"] * 3, *["*Told*"] * 3, "*Unigram*"]
    assert "Oracle: a perfect network in the same kind of sampler; not compared." in text
    assert "Told: given something that it would have to model; not compared." in text
    assert "model; not compared" not in results_table(_frame(*FLOOR, *METHOD), [EXCESS])


def test_floors_and_probes_win_nothing_and_take_no_win_away():
    rows = [_row("Alpha", "method", 1, 30.0), _row("Beta", "method", 1, 25.0), _row("Oracle", "floor", 1, 20.0)]
    rows.append(_row("Told", "probe", 1, 15.0))
    table = aggregate(labelled(_frame(*rows)), ["excess_nats"]).reset_index(drop=True)
    assert [table.loc[i, "label"] for i in best_rows(table, EXCESS)] == ["Beta"]
    assert best_rows(table[table["label"] != "Beta"], EXCESS) == set(), "nothing is best alone"


def test_figure_of_one_study_draws_the_floor_as_a_dashed_black_curve(drawn, tmp_path):
    frame = labelled(_frame(*METHOD, *FLOOR, *SCALE))
    assert figures.scores(frame, EXCESS, "nfe", tmp_path / "a.png")
    line = _line(drawn[0], "Oracle")
    assert (line.get_color(), line.get_linestyle(), line.get_marker()) == ("#000000", "--", ".")
    assert list(line.get_xdata()) == [1, 2, 4] and list(line.get_ydata()) == [20, 9, 1]
    assert {text.get_text() for text in drawn[0].texts} == {"Data", "Unigram"}, "and not as a horizontal line"


def test_probes_are_thin_grey_dash_dotted_curves_and_several_can_be_told_apart(drawn, tmp_path):
    second = [r | {"title": "Shown", "method": "shown", "excess_nats": r["excess_nats"] + 1} for r in PROBE]
    frame = _frame(*METHOD, *FLOOR, *PROBE, *second)
    assert figures.scores(labelled(frame), EXCESS, "nfe", tmp_path / "a.png")
    assert panels({"one": frame}, EXCESS, tmp_path / "b.png")
    for axes in drawn:
        floor, told, shown, alpha = (_line(axes, label) for label in ("Oracle", "Told", "Shown", "Alpha"))
        assert told.get_color() == shown.get_color() == "#4a4a4a" and shown.get_linestyle() == "-."
        assert told.get_linewidth() < floor.get_linewidth() < alpha.get_linewidth()
        assert told.get_markersize() < alpha.get_markersize() and told.get_marker() != shown.get_marker()
        patterns = {str(line._unscaled_dash_pattern) for line in (floor, told, shown)}
        assert len(patterns) == 3 and list(told.get_ydata()) == [15, 10, 1.5]


def test_a_panel_of_a_probe_alone_is_drawn(drawn, tmp_path):
    assert panels({"one": _frame(*PROBE, *SCALE)}, EXCESS, tmp_path / "a.png")
    assert _line(drawn[0], "Told").get_linestyle() == "-."


def test_infinite_points_are_left_out_and_named_in_their_panel(drawn, tmp_path):
    two = [METHOD[0] | {"excess_nats": math.inf, "excess_nats_se": None}, *METHOD[1:], *FLOOR, SCALE[0]]
    two += [_row("Unigram", "reference", 0, math.inf, None)]
    two[-3] = two[-3] | {"excess_nats": math.inf, "excess_nats_se": None}  # the floor at NFE 4
    assert panels({"two": _frame(*two), "one": _frame(*METHOD)}, EXCESS, tmp_path / "a.png")
    first, second = drawn
    assert [text.get_text() for text in first.texts] == ["Alpha: infinite at NFE 1\nOracle: infinite at NFE 4"]
    assert not second.texts and list(_line(first, "Alpha").get_xdata()) == [2, 4]
    assert np.isfinite(first.get_ylim()).all() and "Unigram" not in {line.get_label() for line in first.lines}
    text = results_table(_frame(*two), [EXCESS])
    assert "| Alpha | 1 | 1.00 | inf |" in text and "inf: infinite" in text


def test_one_seed_with_an_impossible_sample_makes_the_mean_infinite(drawn, tmp_path):
    seeds = [METHOD[1] | {"seed": s, "excess_nats": v} for s, v in enumerate((12.0, math.inf, 11.0))]
    assert "| Alpha | 2 | 2.00 | inf |" in results_table(_frame(METHOD[0], *seeds), [EXCESS])
    assert panels({"one": _frame(METHOD[0], *seeds)}, EXCESS, tmp_path / "a.png")
    assert list(_line(drawn[0], "Alpha").get_xdata()) == [1]


def test_roles_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="flor"):
        labelled(_frame(_row("Oracle", "flor", 1, 1.0)))


# ---- axes ---------------------------------------------------------------------------------------------------------------
def test_linear_range_by_hand():
    assert linear_range([1.0, 40.0], [0.4, 1.0]) is None, "all are above 0 by two errors"
    assert linear_range([0.1, 40.0], [0.06, 1.0]) == 0.2, "0.1 + 0.06, rounded up"
    assert linear_range([-3.0, 40.0], [0.1, 1.0]) == 5.0, "nothing within two errors: the smallest distance"
    assert linear_range([-3.0, 0.01, 40.0], [0.1, 0.01, 1.0]) == pytest.approx(0.02)
    assert linear_range([0.0, 0.0], [0.0, 0.0]) == 1.0
    assert linear_range([math.nan, 5.0], [math.nan, math.nan]) is None and linear_range([], []) is None
    assert linear_range([-1.0, math.inf], [0.1, math.nan]) == 1.0


@pytest.mark.parametrize(
    ("values", "scale"),
    [((50, 5, 0.5), "log"), ((50, 5, 0.15), "symlog"), ((50, 5, -0.3), "symlog"), ((3, 2, 1), "linear")],
)
def test_scale_fits_the_values_and_no_point_is_cut_off(drawn, tmp_path, values, scale):
    rows = [_row("Alpha", "method", k, v) for k, v in zip((1, 2, 4), values, strict=True)]
    assert panels({"one": _frame(*rows)}, EXCESS, tmp_path / "a.png")
    (axes,) = drawn
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(values) - 0.1 * (scale != "log") and high > max(values)
    assert ("linear within ±" in axes.get_ylabel()) == (scale == "symlog")
    if scale == "symlog":
        linear = axes.yaxis.get_transform().linthresh
        assert f"linear within ±{linear:g}" in axes.get_ylabel()
        assert {0.0, linear, 10.0} <= set(axes.get_yticks())


# ---- several tasks ------------------------------------------------------------------------------------------------------
def _tasks():
    two = [r | {"study": "s/two", "data": "two"} for r in (*METHOD, *FLOOR, *SCALE)]
    two[2] = two[2] | {"excess_nats": math.nan}  # the method at NFE 4: some of its samples are impossible
    return {"two": _frame(*two, _row("Beta", "method", 2, 3.0, task="two")), "one": _frame(*METHOD, *FLOOR, *SCALE)}


def test_panels_show_each_task_with_the_same_look(drawn, tmp_path):
    assert panels(_tasks(), EXCESS, tmp_path / "a.png") == tmp_path / "a.png"
    assert [axes.get_title(loc="left") for axes in drawn] == ["two", "one"], "the order that was given"
    two, one = drawn
    assert list(_line(two, "Alpha").get_xdata()) == [1, 2], "unknown is not drawn"
    assert list(_line(one, "Alpha").get_ydata()) == [30, 12, 2]
    for axes in drawn:
        assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
        assert _line(axes, "Oracle").get_linestyle() == "--"
        assert set(_line(axes, "Unigram").get_ydata()) == {40.0} and set(_line(axes, "Data").get_ydata()) == {0.02}
    assert _line(one, "Alpha").get_color() == _line(two, "Alpha").get_color() != _line(two, "Beta").get_color()


def test_no_panel_without_a_curve(tmp_path):
    assert panels({"one": _frame(*SCALE)}, EXCESS, tmp_path / "a.png") is None
    assert panels({"one": _frame(*METHOD)}, Column("mauve", "MAUVE", "", "higher"), tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())


def test_real_figure_is_the_same_to_the_byte_each_time(tmp_path):
    first, second = (panels(_tasks(), EXCESS, tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second and first.startswith(b"\x89PNG") and len(first) > 20_000


def test_report_counts_what_is_there_and_drops_what_no_task_has(drawn, tmp_path):
    frames = _tasks()
    tasks = [TaskResults(name, frame, 12, [EXCESS], ["Alpha/seed0 failed: why"]) for name, frame in frames.items()]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "gone.png").write_bytes(b"")
    path = write_suite_report(tmp_path, [*tasks, TaskResults("late", None, 0)], {"title": "Study s", "n": "100"})
    text = path.read_text()
    assert "| two | two | 9 of 12 | [two/report.md](two/report.md) |" in text
    assert "| late | — | none under this configuration | — |" in text and "## late" not in text
    assert "- one: Alpha/seed0 failed: why" in text and "- Sequences per score: `100`" in text
    assert text.index("## two") < text.index("## one") and "| Beta | 2 | 2.00 | **3.00 ± 0.10** |" in text
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["excess_nats.png"]
    both = ResultsTable.read(tmp_path / "results.parquet")
    assert dict(both["data"].value_counts()) == {"two": 9, "one": 8}
    known = both[(both["data"] == "one") & (both["title"] == "Alpha")]
    assert np.array_equal(known["excess_nats"], [30.0, 12.0, 2.0])


# ---- tasks that are trainings of different length -----------------------------------------------------------------------
def _longer(task, flops, alpha, beta):
    more = {"train_flops": flops, "data": "text", "task": task}
    rows = [_row("Alpha", "method", k, v, **more) for k, v in zip((2, 64), alpha, strict=True)]
    rows += [_row("Beta", "method", k, v, **more) for k, v in zip((2, 64), beta, strict=True)]
    rows = [row | {"nelbo_nats_per_token": row["excess_nats"] / 10, "nelbo_se": 0.01, "data": "text"} for row in rows]
    left = _row("Left to right", "reference", 64, flops / 1e12, **more)
    return _frame(*rows, left, *(row | {"data": "text", "train_flops": None} for row in SCALE))


def _lengths():
    return {"x5": _longer("x5", 5e12, (9, 6), (8, 3)), "x1": _longer("x1", 1e12, (20, 10), (12, 9))}


def test_scores_are_drawn_and_listed_against_training_flops(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "save", figures.save)
    tasks = [TaskResults(name, frame, 5, [EXCESS]) for name, frame in _lengths().items()]
    text = write_suite_report(tmp_path, tasks, {}).read_text()
    assert "| Alpha | 1.00e12 | 20.00 ± 0.10 | 10.00 ± 0.10 |" in text, "rising FLOPs, whatever the order of the tasks"
    assert "| Alpha | 5.00e12 | 9.00 ± 0.10 | 6.00 ± 0.10 |" in text and "| *Unigram* | — | 40.00 ± 0.10 |  |" in text
    assert text.index("1.00e12") < text.index("5.00e12")
    assert "| *Left to right* | 5.00e12 | — | 5.00 ± 0.10 |" in text, "a reference that is trained grows too"
    bound, few, many = (axes for axes in drawn if axes.get_xlabel() == "Training FLOPs")
    assert (few.get_title(loc="left"), many.get_title(loc="left")) == ("NFE 2", "NFE 64")
    (alpha,) = [container for container in few.containers if container.get_label() == "Alpha"]
    assert list(alpha.lines[0].get_xdata()) == [1e12, 5e12] and list(alpha.lines[0].get_ydata()) == [20, 9]
    assert {text.get_text() for text in few.texts} == {"Data", "Unigram"}, (
        "what is not trained for longer is a line across"
    )
    (left,) = [container for container in few.containers if container.get_label() == "Left to right"]
    assert list(left.lines[0].get_ydata()) == [1, 5], "at its own number of calls, in each panel"
    (alpha,) = [container for container in bound.containers if container.get_label() == "Alpha"]
    assert list(alpha.lines[0].get_ydata()) == [2.0, 0.9]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"excess_nats.png", "growth_excess_nats.png", "growth_nelbo_nats_per_token.png"}


@pytest.mark.parametrize("change", [{"data": "other"}, {"protocol": "p2"}, {"train_flops": 5e12}])
def test_tasks_of_other_data_or_protocols_or_equal_training_do_not_grow(change):
    frames = _lengths()
    frames["x1"] = frames["x1"].assign(**change)
    assert growth.grown(frames, [EXCESS]) is None
    assert growth.grown(_lengths(), [EXCESS]) is not None


def test_a_growth_figure_is_a_picture(tmp_path):
    text = growth.growth_section(tmp_path, _lengths(), [EXCESS])
    for name in ("growth_excess_nats", "growth_nelbo_nats_per_token"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG") and name in text
