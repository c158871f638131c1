"""Tables to the letter, error bars by hand, figures that show what they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.metrics.base import Column
from harness.report import figures
from harness.report.aggregate import aggregate, combine, labelled, with_labels
from harness.report.report import write_report
from harness.report.table import best_rows, cost_table, counted, frontier_table, measured, number, results_table
from harness.store import ResultsTable

COLUMNS = [
    Column("gen_ppl", "Gen. perplexity", "", "lower", tradeoff="quality", meaning="pooled over all samples"),
    Column("entropy", "Entropy", "nats", "data", tradeoff="diversity"),
    Column("mauve", "MAUVE", "", "higher"),
]
SIDES = (COLUMNS[0], COLUMNS[1])


def _row(title, role, nfe, ppl, entropy, mauve, **more):
    row = dict(study="s", data="d", method=title.lower(), title=title, role=role, sampler="x", seed=0, nfe=nfe, n=100)
    row |= dict(protocol="p1", temperature=1.0, gen_ppl=ppl, entropy=entropy, mauve=mauve)
    return row | dict(gen_ppl_se=1.0, entropy_se=0.01, mauve_se=0.01) | more


def _frame(rows):
    return ResultsTable(rows).frame()


ROWS = [
    _row("Data", "data", None, 20.0, 4.5, 0.95, temperature=None),
    _row("Unigram", "reference", 1, 900.0, 4.8, 0.01),
    _row("Alpha", "method", 2, 60.0, 4.2, 0.50, equivalent_nfe=2, seconds_per_seq=0.0123),
    _row("Alpha", "method", 4, 40.0, 4.4, 0.60, equivalent_nfe=4, nelbo_nats_per_token=3.21, nelbo_se=0.012),
    _row("Beta", "method", 4, 37.5, 4.45, 0.8, equivalent_nfe=2.5, nfe_latent=2, nfe_token=2, seconds_per_seq=2),
]


def test_table_to_the_letter():
    assert results_table(_frame(ROWS), COLUMNS).split("\n\n")[0] == "\n".join(
        [
            "| Method | NFE | Equiv. NFE | Gen. perplexity ↓ | Entropy (nats) → 4.500 | MAUVE ↑ | Bound (nats/token) ↓ "
            "| Seconds per sequence ↓ |",
            "|:--|--:|--:|--:|--:|--:|--:|--:|",
            "| *Data* | — | — | 20.0 ± 1.0 | 4.500 ± 0.010 | 0.950 ± 0.010 | — | — |",
            "| Alpha | 2 | 2.00 | 60.0 ± 1.0 | 4.200 ± 0.010 | 0.500 ± 0.010 | — | 0.0123 |",
            "| Alpha | 4 | 4.00 | 40.0 ± 1.0 | 4.400 ± 0.010 | 0.600 ± 0.010 | 3.210 ± 0.012 | — |",
            "| Beta | 4 (2+2) | 2.50 | 37.5 ± 1.0 | **4.450 ± 0.010** | **0.800 ± 0.010** | — | 2.00 |",
            "| *Unigram* | 1 | — | 900.0 ± 1.0 | 4.800 ± 0.010 | 0.010 ± 0.010 | — | — |",
        ]
    )


def test_perplexities_2_5_apart_with_error_1_are_no_win_and_4_are():
    worse = [dict(row) for row in ROWS]
    worse[3]["gen_ppl"] = 41.5
    assert "**37.5 ± 1.0**" in results_table(_frame(worse), COLUMNS)
    assert "**37.5" not in results_table(_frame(ROWS), COLUMNS)


def test_best_needs_company_and_errors_and_all_others_apart():
    def winners(*methods):
        rows = [_row(f"M{i}", "method", 4, ppl, 4.0, 0.5, gen_ppl_se=se) for i, (ppl, se) in enumerate(methods)]
        table = aggregate(labelled(_frame(rows)), ["gen_ppl"]).reset_index(drop=True)
        return best_rows(table, COLUMNS[0])

    assert winners((10, 1)) == set()
    assert winners((10, 1), (20, 1)) == {0}
    assert winners((10, 1), (20, None)) == set()
    assert winners((10, 1), (20, 1), (40, 20)) == set(), "the third one's interval reaches over"


def test_closest_to_the_data_counts_from_both_sides():
    rows = [_row("Over", "method", 4, 1, 4.7, 0.5), _row("Under", "method", 4, 1, 4.4, 0.5), ROWS[0]]
    assert "**4.400 ± 0.010**" in results_table(_frame(rows), COLUMNS)
    rows[0]["entropy"] = 4.61
    assert "**4." not in results_table(_frame(rows), COLUMNS)


def test_combined_errors_by_hand():
    assert combine([3.0], [0.5]) == (3.0, 0.5)
    mean, error = combine([1.0, 2.0, 3.0], [0.1, 0.1, 0.1])
    assert mean == 2.0 and error == pytest.approx(1 / math.sqrt(3))
    assert combine([2.0, 2.0], [0.3, 0.4]) == (2.0, pytest.approx(0.25)), "seeds that agree still have sampling noise"


def test_a_seed_that_is_not_finite_is_not_averaged_away():
    for undefined in ([], [math.nan], [math.nan, 2.0], [math.inf, math.nan]):
        assert all(math.isnan(part) for part in combine(undefined, [0.1] * len(undefined)))
    for infinite in ([math.inf], [1.0, math.inf], [math.inf, math.inf]):
        mean, error = combine(infinite, [0.1] * len(infinite))
        assert mean == math.inf and math.isnan(error)
    assert combine([1.0, 3.0], [math.nan, 0.1]) == (2.0, pytest.approx(1.0)), "an unknown error is not an unknown value"
    rows = [_row("Alpha", "method", 4, ppl, 4.0, 0.5, seed=s) for s, ppl in enumerate((30.0, None, 33.0))]
    table = aggregate(labelled(_frame(rows)), ["gen_ppl", "entropy"])
    assert math.isnan(table["gen_ppl"].iloc[0]) and table["entropy"].iloc[0] == 4.0


def test_infinite_scores_are_shown_as_such_and_nothing_wins_against_them():
    rows = [_row("Alpha", "method", 4, math.inf, 4, 0.5, gen_ppl_se=None), _row("Beta", "method", 4, 30.0, 4, 0.5)]
    text = results_table(_frame(rows), COLUMNS)
    assert "| Alpha | 4 | — | inf |" in text and "| Beta | 4 | — | 30.0 ± 1.0 |" in text
    assert "inf: infinite" in text and "inf: infinite" not in results_table(_frame(rows[1:]), COLUMNS)


def test_seeds_are_averaged_and_the_caption_says_so():
    rows = [_row("Alpha", "method", 4, 30.0 + 3 * s, 4.0, 0.5, seed=s) for s in range(3)]
    text = results_table(_frame(rows), COLUMNS)
    assert "| 33.0 ± 1.7 |" in text and "Means over 3 training seeds" in text
    assert "One training seed" in results_table(_frame(rows[:1]), COLUMNS)


def test_two_samplers_of_one_method_have_a_style_each_and_keep_it_over_tasks():
    one = [_row("Alpha", "method", 4, 30, 4, 0.5), _row("Alpha", "method", 4, 50, 4, 0.5, sampler="")]
    two = [_row("Alpha", "method", 4, 30, 4, 0.5), _row("Beta", "method", 4, 30, 4, 0.5)]
    first, second = with_labels(_frame(one), _frame(two))
    assert set(first["label"]) == {"Alpha (alpha, x)", "Alpha (alpha)"}
    assert set(second["label"]) == {"Alpha (alpha, x)", "Beta"}, "though its title is its own there"
    style = figures.Style.of_table(aggregate(labelled(first), ["gen_ppl"]))
    assert style.of("Alpha (alpha, x)") != style.of("Alpha (alpha)")


def test_two_samplers_under_one_title_are_kept_apart():
    rows = [_row("Alpha", "method", 4, 30, 4, 0.5), _row("Alpha", "method", 4, 50, 4, 0.5, sampler="y")]
    text = results_table(_frame(rows), COLUMNS)
    assert "Alpha (alpha, x)" in text and "Alpha (alpha, y)" in text and "40.0" not in text


def test_rows_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="protocol"):
        results_table(_frame([ROWS[2], ROWS[3] | {"protocol": "p2"}]), COLUMNS)
    with pytest.raises(ValueError, match="role"):
        results_table(_frame([ROWS[2] | {"role": "hero"}]), COLUMNS)


def test_a_lone_reference_without_nfe_is_the_data():
    rows = [ROWS[0] | {"role": "reference"}, *ROWS[1:]]
    assert results_table(_frame(rows), COLUMNS) == results_table(_frame(ROWS), COLUMNS)


def test_other_temperatures_stay_out_of_the_main_table():
    rows = [*ROWS, ROWS[2] | {"temperature": 0.5, "gen_ppl": 5.0}]
    assert results_table(_frame(rows), COLUMNS) == results_table(_frame(ROWS), COLUMNS)


def test_perplexity_at_the_data_entropy_by_hand():
    rows = [ROWS[0]] + [
        _row("Alpha", "method", 4, ppl, entropy, 0.5, temperature=t, gen_ppl_se=0.1 * ppl)
        for t, ppl, entropy in [(0.8, 10.0, 4.0), (1.0, 40.0, 4.8)]
    ]
    # 4.5 is 5/8 of the way: 10^(3/8) 40^(5/8); relative errors of 10 % weigh 3/8 and 5/8.
    value = 10 ** (3 / 8) * 40 ** (5 / 8)
    error = value * 0.1 * math.hypot(3 / 8, 5 / 8)
    line = frontier_table(_frame(rows), COLUMNS).splitlines()[2]
    assert line == f"| Alpha | 4 | {value:.1f} ± {error:.1f} | 0.925 | 4.000 – 4.800 |"
    rows[0] = rows[0] | {"entropy": 5.0}
    assert frontier_table(_frame(rows), COLUMNS).splitlines()[2] == "| Alpha | 4 | — | — | 4.000 – 4.800 |"
    assert frontier_table(_frame(ROWS), COLUMNS) == ""
    assert frontier_table(_frame(rows), COLUMNS[1:]) == "", "a study without such a score"


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (45.317, 0.42, "45.32 ± 0.42"),
        (1234.5, 30.0, "1234 ± 30"),
        (0.5, math.nan, "0.5000"),
        (math.nan, 1.0, "—"),
        (2.0, 0.0, "2.000 ± 0"),
        (0.95, 0.00049, "0.95000 ± 0.00049"),
    ],
)
def test_measured(value, error, shown):
    assert measured(value, error) == shown


def test_numbers_and_counts():
    assert [number(v) for v in (0.0123, 12.34, 999999.0, 1.5e9, 0)] == ["0.0123", "12.3", "999999", "1.50e9", "0"]
    assert [counted(v) for v in (950, 12_345, 1.234e7, 2e12, math.nan)] == ["950", "12.3K", "12.3M", "2.00T", "—"]


def test_cost_table():
    rows = [ROWS[2] | {"params": 12_000_000, "flops_per_seq": 2e9}, ROWS[3] | {"flops_per_seq": 4e9}, ROWS[0]]
    line = cost_table(_frame(rows)).splitlines()[2]
    assert line == "| Alpha | 12.0M | — | — | 2.00e9 at NFE 2 – 4.00e9 at NFE 4 | 1 |"


def _pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def _has_colour(pixels, code):
    rgb = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(pixels - rgb).max(axis=-1) < 0.02).sum())


def test_figures_show_each_method_and_change_with_the_data(tmp_path):
    frame = labelled(_frame(ROWS))
    path = figures.scores(frame, COLUMNS[0], "nfe", tmp_path / "a.png")
    pixels = _pixels(path)
    assert pixels.shape[1] >= 1000
    assert _has_colour(pixels, "#0072B2") > 200 and _has_colour(pixels, "#D55E00") > 30
    assert _has_colour(pixels, "#CC79A7") == 0
    again = figures.scores(frame, COLUMNS[0], "nfe", tmp_path / "b.png")
    assert path.read_bytes() == again.read_bytes(), "the same data are the same bytes"
    other = figures.scores(labelled(_frame(ROWS[2:])), COLUMNS[0], "nfe", tmp_path / "c.png")
    assert other.read_bytes() != path.read_bytes(), "references leave no trace"


def test_figures_of_nothing_are_not_drawn(tmp_path):
    frame = labelled(_frame([ROWS[0], ROWS[2] | {"gen_ppl": None}]))
    assert figures.scores(frame, COLUMNS[0], "nfe", tmp_path / "a.png") is None
    assert figures.plane(frame, SIDES, tmp_path / "a.png") is None
    assert figures.curves({"a": [[]]}, tmp_path / "a.png", "t", "u") is None
    assert list(tmp_path.iterdir()) == []


def test_infinite_points_stay_out_of_the_plane(tmp_path):
    more = [_row("Beta", "method", 8, math.inf, 4.5, 0.8), _row("Far", "reference", 1, math.inf, 4.5, 0.8)]
    first, second = (
        figures.plane(labelled(_frame(rows)), SIDES, tmp_path / f"{i}.png")
        for i, rows in enumerate((ROWS, ROWS + more))
    )
    assert first.read_bytes() == second.read_bytes()
    assert figures.plane(labelled(_frame(more)), SIDES, tmp_path / "b.png") is None


def test_styles_do_not_repeat_and_labels_do_not_collide():
    style = figures.Style([f"m{i}" for i in range(20)])
    assert len({tuple(style.of(f"m{i}").values()) for i in range(20)}) == 20
    style = figures.Style([], floors=[f"f{i}" for i in range(8)], probes=[f"p{i}" for i in range(8)])
    looks = {str(sorted(style.beside(f"{kind}{i}").items(), key=str)) for kind in "fp" for i in range(8)}
    dashes = {str(style.beside(f"{kind}{i}")["linestyle"]) for kind in "fp" for i in range(4)}
    assert len(looks) == 16 and len(dashes) == 8
    spread = figures._spread([0.5, 0.5, 0.52, 0.9], 0.05)
    assert min(np.diff(sorted(spread))) > 0.049 and spread[3] == 0.9


def test_report_is_whole_and_repeatable(tmp_path):
    swept = [ROWS[3] | {"temperature": t, "entropy": 4.0 + t, "gen_ppl": 30.0 + 10 * t} for t in (0.4, 0.8)]
    context = {
        "title": "A study",
        "judge": "tiny judge",
        "judge_ppl": 21.23456,
        "n": 100,
        "seeds": [0],
        "command": "run it",
        "data": {"name": "d"},
        "provenance": {"packages": {"torch": "2"}},
        "notes": ["made up"],
        "samples": [
            {"title": "Alpha", "nfe": 4, "text": "x ``` y"},
            {"title": "Alpha", "nfe": 4, "text": "a later one"},
        ],
        "curves": {"Loss": {"unit": "nats", "series": {"Alpha": [[(0, 2.0), (1, 1.0)], [(0, 3.0), (1, 1.5)]]}}},
    }
    path = write_report(tmp_path, _frame(ROWS + swept), COLUMNS, context)
    text = path.read_text()
    for heading in (
        "# A study",
        "## Scores",
        "### At the diversity of the data",
        "### Cost",
        "### Figures",
        "## Training",
    ):
        assert f"{heading}\n" in text
    linked = {part.split(")")[0] for part in text.split("](")[1:]}
    assert len(linked) == 11 and all((tmp_path / name).stat().st_size > 5000 for name in linked)
    assert "````text\nx ``` y\n````" in text and "a later one" not in text
    assert "`21.23`" in text and "pooled over all samples" in text and "**Bound**" in text
    assert write_report(tmp_path, _frame(ROWS + swept), COLUMNS, context).read_text() == text


def test_two_protocols_get_two_sections(tmp_path):
    rows = [*ROWS, *({**row, "protocol": "p2"} for row in ROWS)]
    text = write_report(tmp_path, _frame(rows), COLUMNS[:1], {}).read_text()
    assert "## d, protocol p1" in text and "## d, protocol p2" in text
    assert (tmp_path / "figures" / "d_p2_gen_ppl_nfe.png").is_file()
