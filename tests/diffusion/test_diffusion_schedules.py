"""Schedules: ends, slopes, inverses, and stratified times."""

import math

import pytest
import torch

from harness.diffusion.schedules import stratified_times, token_schedule
from lddm.gaussian import LatentSchedule
from tests.kit.toys import generator_of, one_thread  # noqa: F401

NAMES = ["linear", "log_linear", "cosine", "quadratic"]
T = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_falls_from_1_to_0_with_the_slope_that_is_stated(name):
    schedule = token_schedule(name)
    alpha, inner, h = schedule.alpha(T), T[1:-1], 1e-6
    assert alpha[0].item() == 1.0, "a last reverse step that ends below 1 may leave a mask"
    assert alpha[-1].item() == 0.0
    assert (alpha.diff() < 0).all()
    numeric = (schedule.alpha(inner + h) - schedule.alpha(inner - h)) / (2 * h)
    assert torch.allclose(schedule.slope(inner), numeric, atol=1e-8)
    assert torch.allclose(schedule.weight(inner), -numeric / (1 - schedule.alpha(inner)), rtol=1e-6)


def test_linear_weight_is_1_over_t():
    assert torch.allclose(token_schedule("linear").weight(T[1:]), 1.0 / T[1:])


def test_stratified_times_put_one_time_in_each_stratum():
    for seed in range(20):
        t = stratified_times(16, generator_of(seed))
        assert t.dtype == torch.float64
        assert t.min() > 0.0 and t.max() <= 1.0
        assert sorted(torch.ceil(t * 16).int().tolist()) == list(range(1, 17))


def test_each_stratified_time_is_uniform_by_itself():
    t_RB = torch.stack([stratified_times(4, generator_of(seed)) for seed in range(4000)])
    assert t_RB.mean(0).tolist() == pytest.approx([0.5] * 4, abs=4 * math.sqrt(1 / 12 / 4000))
    assert t_RB.var(0).tolist() == pytest.approx([1 / 12] * 4, rel=0.1)


# ---- the latent schedule --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0.3, 1.0, 4.0])
def test_latent_schedule_preserves_variance_and_inverts(shift):
    schedule, inner = LatentSchedule(shift), T[1:-1]
    assert torch.allclose(schedule.a(T) ** 2 + schedule.sigma(T) ** 2, torch.ones_like(T))
    assert schedule.a(T)[0] == 1.0 and schedule.sigma(T)[0] == 0.0
    assert schedule.a(T)[-1].abs() < 1e-15
    expected = 2.0 * torch.log(schedule.a(inner) / schedule.sigma(inner))
    assert torch.allclose(schedule.log_snr(inner), expected, atol=1e-10)
    assert torch.allclose(schedule.time_of(schedule.log_snr(inner)), inner, atol=1e-12)
    assert (schedule.log_snr(inner).diff() < 0).all()


def test_shift_1_leaves_times_and_a_larger_one_moves_all_of_them_to_noise():
    assert torch.allclose(LatentSchedule(1.0).warp(T), T)
    warped = [LatentSchedule(shift).warp(T) for shift in (0.5, 1.0, 2.0, 5.0)]
    for low, high in zip(warped, warped[1:], strict=False):
        assert (high[1:-1] > low[1:-1]).all()
        assert (high.diff() > 0).all()
        assert high[0] == 0.0 and high[-1] == pytest.approx(1.0)
    # t' = a t / (1 + (a - 1) t) at a = 3, t = 1/2 by hand: 1.5 / 2.
    assert LatentSchedule(3.0).warp(torch.tensor(0.5)).item() == pytest.approx(0.75)
