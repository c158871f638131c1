"""The masked process: forward draw, two-stage reverse step and token draws against their exact laws."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.diffusion import masked
from harness.diffusion.schedules import token_schedule
from tests.kit.toys import chi_square_p, generator_of, one_thread  # noqa: F401

LAW = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


def draws_of(law_V: torch.Tensor, n: int, seed: int, **kwargs) -> torch.Tensor:
    tokens, _ = masked.draw_tokens(law_V.log().expand(n, -1), generator_of(seed), **kwargs)
    return tokens


# ---- draw_tokens ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_follow_their_probabilities(seed):
    counts = torch.bincount(draws_of(LAW, 100_000, seed), minlength=4).numpy()
    assert chi_square_p(counts, LAW.numpy()) > 1e-3


def test_every_row_has_a_law_of_its_own():
    laws_RV = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    tokens, _ = masked.draw_tokens(laws_RV.log().repeat(50_000, 1), generator_of(3))
    for row in range(2):
        counts = torch.bincount(tokens[row::2], minlength=3).numpy()
        assert chi_square_p(counts, laws_RV[row].numpy()) > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    counts = torch.bincount(draws_of(LAW, 100_000, 4, temperature=temperature), minlength=4).numpy()
    powered = LAW.numpy() ** (1.0 / temperature)
    assert chi_square_p(counts, powered / powered.sum()) > 1e-3
    assert chi_square_p(counts, LAW.numpy()) < 1e-6


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("allowed", [(1,), (2, 3), (0, 4), (3, 1, 2)])
def test_tokens_of_probability_zero_are_not_drawn_even_at_the_ends_of_the_uniform(monkeypatch, u, allowed):
    logits_MV = torch.full((7, 5), -torch.inf)
    weight_MA = torch.randn(7, len(allowed), generator=generator_of(5))
    logits_MV[:, list(allowed)] = weight_MA
    monkeypatch.setattr(masked.torch, "rand", lambda shape, **kw: torch.full(shape, u, dtype=torch.float64))
    tokens, _ = masked.draw_tokens(logits_MV, generator_of(0))
    assert set(tokens.tolist()) == {min(allowed) if u == 0.0 else max(allowed)}


def test_dtype_is_that_of_the_draw_whatever_the_logits_are():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        tokens, drawn = masked.draw_tokens(torch.zeros(3, 4, dtype=dtype), generator_of(0))
        assert (drawn, tokens.dtype, tokens.shape) == ("float64", torch.int64, (3,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked.draw_tokens(torch.zeros(3, 4), generator_of(0))[1] == "float64"


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that is made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(t.nbytes for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_draws_in_slices_are_the_same_to_the_bit_and_of_bounded_size(monkeypatch, temperature):
    logits_MV = 3 * torch.randn(601, 257, generator=generator_of(8))
    monkeypatch.setattr(masked, "_AT_ONCE", 50 * 257)
    with _Largest() as largest:
        tokens, _ = masked.draw_tokens(logits_MV, generator_of(9), temperature)
    assert largest.bytes <= 8 * 50 * 257, "13 times as much in one piece"
    cdf_MV = (logits_MV.double() / temperature).softmax(-1).cumsum(-1)
    u_M1 = torch.rand((601, 1), generator=generator_of(9), dtype=torch.float64)
    whole_M = torch.searchsorted(cdf_MV, u_M1 * cdf_MV[:, -1:], right=True)[:, 0]
    assert tokens.equal(whole_M)
    assert masked.log_p(logits_MV, tokens).equal(logits_MV.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_a_large_vocabulary_takes_little_more_than_its_logits():
    """50257 symbols: float64 probabilities of these rows alone would take 200 MB, and their sums as much again."""
    logits_MV = torch.zeros(1, 50257).expand(512, -1)
    with _Largest() as largest:
        masked.draw_tokens(logits_MV, generator_of(0))
    assert largest.bytes <= 2**26


def test_logits_that_are_no_numbers_are_not_drawn_from():
    logits_MV = torch.zeros(5, 4)
    logits_MV[3, 2] = math.nan
    with pytest.raises(FloatingPointError, match="logits to draw from are not numbers"):
        masked.draw_tokens(logits_MV, generator_of(0))


def test_no_rows_no_tokens():
    tokens, drawn = masked.draw_tokens(torch.zeros(0, 4), generator_of(0))
    assert (tokens.shape, drawn) == ((0,), "float64")


# ---- the reverse step -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.3), (0.2, 0.5), (0.9, 0.95)])
def test_two_stages_are_the_joint_posterior_over_the_vocabulary_and_the_mask(alpha_t, alpha_s):
    """q(x_s | x_t = m): token v with (alpha_s - alpha_t) / (1 - alpha_t) p_v, else the mask (MDLM, eq. 7)."""
    n = 200_000
    hidden_N1, generator = torch.ones(n, 1, dtype=torch.bool), generator_of(6)
    flips_N1 = masked.choose_flips(hidden_N1, alpha_t, alpha_s, generator)
    x_N1 = torch.full((n, 1), 4)
    x_N1[flips_N1], _ = masked.draw_tokens(LAW.log().expand(int(flips_N1.sum()), -1), generator)
    rate = (alpha_s - alpha_t) / (1.0 - alpha_t)
    joint = np.append(rate * LAW.numpy(), 1.0 - rate)
    assert chi_square_p(torch.bincount(x_N1[:, 0], minlength=5).numpy(), joint) > 1e-3


def test_only_masked_positions_flip_and_the_last_step_flips_them_all():
    masked_BL = torch.rand(50, 40, generator=generator_of(7)) < 0.5
    flips_BL = masked.choose_flips(masked_BL, 0.4, 0.7, generator_of(8))
    assert not (flips_BL & ~masked_BL).any()
    assert 0 < int(flips_BL.sum()) < int(masked_BL.sum())
    assert torch.equal(masked.choose_flips(masked_BL, 0.4, 1.0, generator_of(8)), masked_BL)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_a_step_that_does_not_go_forward_is_refused(alpha_t, alpha_s):
    with pytest.raises(ValueError, match="reverse step"):
        masked.choose_flips(torch.ones(1, 1, dtype=torch.bool), alpha_t, alpha_s, generator_of(0))


@pytest.mark.parametrize("name", ["linear", "cosine", "quadratic"])
@pytest.mark.parametrize("steps", [1, 3, 1024])
def test_step_alphas_rise_from_exactly_0_to_exactly_1(name, steps):
    alphas = masked.step_alphas(token_schedule(name), steps)
    assert (len(alphas), alphas[0], alphas[-1]) == (steps + 1, 0.0, 1.0)
    assert all(a < b for a, b in zip(alphas, alphas[1:], strict=False))


# ---- tokens of small probability over a whole reverse process -------------------------------------------------------
STEPS, POSITIONS, RARE, RARE_P = 1024, 30_000, 1000, 1e-5


def rare_by_two_stages() -> int:
    """Rare tokens among `POSITIONS` drawn over all steps: `RARE` tokens of probability 1e-5 each and a common one."""
    law_V = torch.full((RARE + 1,), RARE_P, dtype=torch.float64)
    law_V[RARE] = 1.0 - RARE * RARE_P
    logits_V, generator = law_V.log().float(), generator_of(9)
    alphas = masked.step_alphas(token_schedule("linear"), STEPS)
    hidden, rare = torch.ones(POSITIONS, 1, dtype=torch.bool), 0
    for k in range(STEPS):
        flips = masked.choose_flips(hidden, alphas[k], alphas[k + 1], generator)
        tokens, _ = masked.draw_tokens(logits_V.expand(int(flips.sum()), -1), generator)
        rare += int((tokens < RARE).sum())
        hidden &= ~flips
    assert not hidden.any()
    return rare


def rare_by_joint_gumbel(dtype: torch.dtype) -> int:
    """The same with one Gumbel-max draw over the vocabulary and the mask, the noise made from uniforms of `dtype`.

    The rare tokens share one probability, so only their largest noise can win: the largest of R uniforms on a grid of
    2^-24 is U^(1/R), U in float64, put on that grid.
    """
    generator, alphas = generator_of(10), masked.step_alphas(token_schedule("linear"), STEPS)

    def gumbel(u: torch.Tensor) -> torch.Tensor:
        return -torch.log(-torch.log(u))

    left, rare = POSITIONS, 0
    for k in range(STEPS - 1):  # the last step has no mask class and is left out: it draws a share of 1 / 1024
        rate = (alphas[k + 1] - alphas[k]) / (1.0 - alphas[k])
        u_max = torch.rand(left, generator=generator, dtype=torch.float64) ** (1.0 / RARE)
        if dtype == torch.float32:
            u_max = ((u_max * 2.0**24).floor() / 2.0**24).clamp(max=1.0 - 2.0**-24)
        score_rare = gumbel(u_max.to(dtype)) + math.log(rate * RARE_P)
        noise_2N = gumbel(torch.rand(2, left, generator=generator, dtype=dtype))
        score_common = noise_2N[0] + math.log(rate * (1.0 - RARE * RARE_P))
        score_mask = noise_2N[1] + math.log(1.0 - rate)
        won = (score_rare > score_common) & (score_rare > score_mask)
        rare += int(won.sum())
        left = int((~won & (score_mask > score_common)).sum())
    return rare


def test_rare_tokens_keep_their_rate_over_1024_steps():
    expected = POSITIONS * RARE * RARE_P
    drawn = rare_by_two_stages()
    assert stats.binomtest(drawn, POSITIONS, RARE * RARE_P).pvalue > 1e-3, (drawn, expected)


def test_the_same_check_fails_for_a_joint_draw_with_float32_gumbel_noise():
    single, double = rare_by_joint_gumbel(torch.float32), rare_by_joint_gumbel(torch.float64)
    assert stats.binomtest(double, POSITIONS, RARE * RARE_P).pvalue > 1e-3, double
    assert stats.binomtest(single, POSITIONS, RARE * RARE_P).pvalue < 1e-6, single
    # In the first step, which reveals 1 / 1024, theory gives g / (e^g - 1) = 1.4 % of the rate, g = 2^-24 1024 / 1e-5;
    # later steps reveal larger shares, so that the whole process keeps more.
    assert single < 0.4 * POSITIONS * RARE * RARE_P


# ---- forward process and its loss -----------------------------------------------------------------------------------
def test_forward_process_masks_each_token_with_one_minus_alpha():
    x_BL = torch.arange(4).expand(40_000, 4)
    alpha_B = torch.tensor([0.2, 0.9]).repeat(20_000)
    xt_BL, masked_BL = masked.mask_tokens(x_BL, alpha_B, 4, generator_of(11))
    assert torch.equal(xt_BL[~masked_BL], x_BL[~masked_BL])
    assert (xt_BL[masked_BL] == 4).all()
    for row, alpha in ((0, 0.2), (1, 0.9)):
        for i in range(4):
            hits = int(masked_BL[row::2, i].sum())
            assert stats.binomtest(hits, 20_000, 1.0 - alpha).pvalue > 1e-4
    pairs = masked_BL[0::2, 0] & masked_BL[0::2, 1]
    assert stats.binomtest(int(pairs.sum()), 20_000, 0.8**2).pvalue > 1e-4


def test_alpha_0_hides_all_and_alpha_1_hides_nothing():
    x_BL = torch.zeros(2, 1000, dtype=torch.int64)
    _, masked_BL = masked.mask_tokens(x_BL, torch.tensor([0.0, 1.0]), 5, generator_of(12))
    assert masked_BL[0].all()
    assert not masked_BL[1].any()


def test_masked_nll_sums_the_masked_cross_entropies_of_each_sequence():
    x_BL = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 1, 1]])
    masked_BL = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    logits_MV = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0], [0.0, 3.0, 0.0]])
    log_p = logits_MV.double().log_softmax(-1)
    expected = [-(log_p[0, 0] + log_p[1, 2]).item(), 0.0, -log_p[2, 1].item()]
    assert masked.masked_nll(logits_MV, x_BL, masked_BL).tolist() == pytest.approx(expected, rel=1e-6)
