"""Time paths: ends, monotone steps that use a budget up, curves that agree with the steps, and what is refused."""

import math

import pytest
import torch

from harness.errors import BudgetError, UserError
from lddm.paths import (
    KINDS,
    Step,
    joint_path,
    latent_first_path,
    make_path,
    offset_path,
    split_calls,
    through,
)

CORNERS = [0.7, 0.2, 0.7, 0.1, 0.3, 0.1]
PATHS = [
    make_path("lead", lead=2.0),
    make_path("lead", lead=0.5),
    make_path("offset", offset=0.3),
    make_path("offset", offset=0.0),
    make_path("latent_first", latent_share=0.25),
    make_path("through", corners=CORNERS),
    make_path("through", corners=[0.2, 1.0, 0.0, 0.4]),
    make_path("through"),
]


def ends_of(path: list[Step]) -> list[tuple[float, float]]:
    return [(path[0].t_x, path[0].t_z), *((step.s_x, step.s_z) for step in path)]


def flat(pairs) -> list[float]:
    return [time for pair in pairs for time in pair]


def chained(path: list[Step]) -> bool:
    return all(
        (p.s_x, p.s_z) == (q.t_x, q.t_z) for p, q in zip(path, path[1:], strict=False)
    ) and all(p.s_x <= p.t_x and p.s_z <= p.t_z for p in path)  # fmt: skip


# ---- steps ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("nfe", [2, 3, 7, 32, 100])
def test_every_path_spends_exactly_its_budget_from_noise_to_data(path, nfe):
    steps = path.steps(nfe, "X")
    assert len(steps) == nfe and chained(steps)
    assert (steps[0].t_x, steps[0].t_z, steps[-1].s_x, steps[-1].s_z) == (1.0, 1.0, 0.0, 0.0)
    assert all(step.moves_tokens or step.moves_latent for step in steps), "a call that moves nothing is a wasted one"


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
@pytest.mark.parametrize("lead", [0.5, 1.0, 2.0])
def test_joint_path_is_one_call_a_step_from_noise_to_data(steps, lead):
    path = joint_path(steps, lead)
    assert len(path) == steps and chained(path)
    assert (path[0].t_x, path[0].t_z, path[-1].s_x, path[-1].s_z) == (1.0, 1.0, 0.0, 0.0)
    assert all(p.moves_tokens and p.moves_latent for p in path)
    assert all(p.t_z == pytest.approx(p.t_x**lead) for p in path)


def test_offset_path_by_hand():
    path = offset_path(5, 0.4)
    assert flat(ends_of(path)) == pytest.approx([1, 1, 0.8, 2 / 3, 0.6, 1 / 3, 0.4, 0, 0.2, 0, 0, 0])
    assert [p.moves_latent for p in path] == [True] * 3 + [False] * 2, "clean means exactly 0, not nearly"
    assert ends_of(offset_path(4, 0.0)) == ends_of(joint_path(4, 1.0))
    assert ends_of(offset_path(1, 0.9)) == [(1, 1), (0, 0)]


def test_latent_first_path_moves_one_channel_at_a_time():
    path = latent_first_path(3, 5)
    assert len(path) == 8 and chained(path)
    assert [p.moves_latent for p in path] == [True] * 3 + [False] * 5
    assert [p.moves_tokens for p in path] == [False] * 3 + [True] * 5
    assert all(p.t_x == 1.0 for p in path[:4]) and all(p.t_z == 0.0 for p in path[3:])
    assert path[-1].s_x == 0.0


def test_latent_first_path_of_one_channel_alone():
    assert ends_of(latent_first_path(0, 2)) == [(1, 0), (0.5, 0), (0, 0)]
    assert ends_of(latent_first_path(2, 0)) == [(1, 1), (1, 0.5), (1, 0)]


def test_a_polyline_is_cut_into_equal_lengths():
    corner = (0.6, 0.0)  # segments of length sqrt(1.16) and 0.6
    points = [(1.0, 1.0), corner, (0.0, 0.0)]
    for steps in (1, 3, 10):
        ends = ends_of(through(points, steps))
        whole = math.hypot(0.4, 1.0) + 0.6
        for k, (x, z) in enumerate(ends):
            along = math.hypot(1 - x, 1 - z) if z > 0 else math.hypot(0.4, 1.0) + (0.6 - x)
            assert along == pytest.approx(k * whole / steps, abs=1e-9)
    l_shape = through([(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)], 6)
    assert flat(ends_of(l_shape)) == pytest.approx(flat(ends_of(latent_first_path(3, 3))))
    assert [p.moves_tokens for p in l_shape] == [False] * 3 + [True] * 3
    assert flat(ends_of(through([(1.0, 1.0), (0.0, 0.0)], 4))) == pytest.approx(flat(ends_of(joint_path(4))))


# ---- curves ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_steps_lie_on_the_curve(path):
    """Between corners both maps are known; at a corner where one time jumps, each gives the least."""
    for x, z in ends_of(path.steps(40, "X")):
        back_z = float(path.latent_time(torch.tensor([x], dtype=torch.float64)))
        back_x = float(path.token_time(torch.tensor([z], dtype=torch.float64)))
        assert back_z <= z + 1e-9 and back_x <= x + 1e-9
        assert back_z == pytest.approx(z, abs=1e-9) or back_x == pytest.approx(x, abs=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_maps_are_monotone_and_inverse_where_both_times_move(path):
    t_B = torch.linspace(0.0, 1.0, 501, dtype=torch.float64)
    for there, back in ((path.latent_time, path.token_time), (path.token_time, path.latent_time)):
        value_B = there(t_B)
        assert value_B.dtype == torch.float64 and bool((value_B.diff() >= 0).all())
        assert float(value_B.min()) >= 0 and float(value_B.max()) <= 1
        assert bool((back(value_B) <= t_B + 1e-9).all()), "the least time with the same value"
        if path.name.startswith("joint"):  # no time rests beside a jump of the other
            assert torch.allclose(there(back(value_B)), value_B, atol=1e-9)


def test_maps_of_the_offset_path_by_hand():
    path = make_path("offset", offset=0.2)
    t_B = torch.tensor([0.1, 0.2, 0.6, 1.0], dtype=torch.float64)
    assert path.latent_time(t_B).tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0])
    assert path.token_time(t_B).tolist() == pytest.approx([0.28, 0.36, 0.68, 1.0])


def test_on_the_latent_first_path_the_channels_separate():
    """Tokens are read beside a clean latent, and the latent beside masked tokens: the two integrals of SEQ."""
    path, t_B = make_path("latent_first"), torch.tensor([1e-6, 0.3, 1.0], dtype=torch.float64)
    assert path.latent_time(t_B).tolist() == [0.0, 0.0, 0.0]
    assert path.token_time(t_B).tolist() == [1.0, 1.0, 1.0]


# ---- budgets and refusals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("nfe", [2, 3, 8, 33])
def test_split_calls_spends_exactly_the_budget_with_at_least_one_call_each(nfe, share):
    latent, token = split_calls(nfe, share, "SEQ")
    assert latent + token == nfe and min(latent, token) >= 1
    assert abs(latent - share * nfe) <= 1.0


def test_one_call_cannot_be_split():
    with pytest.raises(BudgetError, match=r"^nfe=1 cannot be met by SEQ: .*; use 2 or more$"):
        split_calls(1, 0.5, "SEQ")
    with pytest.raises(BudgetError, match="cannot be met by FUJI, latent-first"):
        make_path("latent_first").steps(1, "FUJI, latent-first")


REFUSALS = [
    ({"kind": "through", "corners": [0.5]}, "give them in pairs"),
    (
        {"kind": "through", "corners": [0.5, 0.5, 0.6, 0.4]},
        r"\(0.6, 0.4\) lies above \(0.5, 0.5\).*at most \(0.5, 0.4\)",
    ),
    ({"kind": "through", "corners": [0.5, 1.5]}, "lies above"),
    ({"kind": "through", "corners": [0.5, -0.1]}, "lies above"),
    ({"kind": "through", "corners": [0.5, math.nan]}, "lies above"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS)
def test_what_is_no_path_is_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as caught:
        make_path(**options)
    assert "\n" not in str(caught.value)


def test_a_polyline_has_the_right_ends():
    for points in ([], [(1.0, 1.0)], [(1.0, 1.0), (0.5, 0.0)], [(0.9, 1.0), (0.0, 0.0)]):
        with pytest.raises(UserError, match=r"it must go from \(1, 1\) to \(0, 0\)"):
            through(points, 4)


def test_names_tell_paths_apart():
    assert len({path.name for path in PATHS}) == len(PATHS)
    assert set(KINDS) == {"lead", "offset", "latent_first", "through"}
