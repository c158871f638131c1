"""The floor of factorised samplers: measured, from the curve of conditional entropies, and by enumeration of orders."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.tasks.binsaw import Binsaw
from harness.tasks.hmm import HMM
from harness.tasks.permutation import Permutation
from harness.tasks.templates import Templates
from tests.kit.exact_floor import equal_counts, factorised_floor, formula_floor, h_curve, h_curves


def test_equal_counts():
    assert equal_counts(128, 4) == (0, 32, 64, 96, 128)
    assert equal_counts(5, 3) == (0, 1, 3, 5)
    assert equal_counts(6, 6) == tuple(range(7))
    with pytest.raises(UserError, match="use 6"):
        equal_counts(6, 7)


@pytest.mark.parametrize("counts", [(0,), (0, 3), (1, 4), (0, 2, 2, 4), (0, 3, 2, 4)])
def test_counts_that_do_not_rise_are_refused(counts):
    task = HMM(4)
    with pytest.raises(UserError, match="do not rise from 0 to 4"):
        factorised_floor(task, counts, 2, np.random.default_rng(0))
    with pytest.raises(UserError, match="do not rise from 0 to 4"):
        formula_floor(np.zeros(4), counts)


def test_permutation_by_hand():
    """With m symbols shown, h_m = log(n - m) exactly, so nothing is left to chance."""
    task, rng = Permutation(4), np.random.default_rng(0)
    h_L = h_curve(task, rng, 8)
    assert h_L.tolist() == pytest.approx([math.log(4 - m) for m in range(4)], abs=1e-12)
    two_steps = 2 * math.log(4) - math.log(4 * 3) + 2 * math.log(2) - math.log(2 * 1)
    assert float(formula_floor(h_L, (0, 2, 4))) == pytest.approx(two_steps, abs=1e-12)
    assert factorised_floor(task, (0, 2, 4), 8, rng) == pytest.approx((two_steps, 0), abs=1e-12)
    assert float(formula_floor(h_L, (0, 4))) == pytest.approx(task.exact.total_correlation, abs=1e-12)
    assert float(formula_floor(h_L, equal_counts(4, 4))) == 0


def test_all_orders_and_sequences_of_a_small_task():
    """`E_order KL(p || q_order)` as a sum over every order and every sequence, for a plan of unequal steps."""
    task, counts = HMM(4, 2, 2, 0.8, 0.9), (0, 1, 4)
    x_CL = task.support()
    log_p_C = task.log_prob(x_CL)
    total = 0.0
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        rank_L = torch.tensor(order)
        log_q_C = torch.zeros_like(log_p_C)
        for start, end in itertools.pairwise(counts):
            log_CLV = task.conditionals(x_CL, (rank_L < start).expand_as(x_CL))
            log_CL = log_CLV.gather(2, x_CL[..., None])[..., 0]
            log_q_C += log_CL[:, (rank_L >= start) & (rank_L < end)].sum(1)
        assert log_q_C.exp().sum().item() == pytest.approx(1, abs=1e-12)
        total += (log_p_C.exp() * (log_p_C - log_q_C)).sum().item() / len(orders)
    measured, error = factorised_floor(task, counts, 20_000, np.random.default_rng(1))
    assert 0 < error < 0.01 and abs(measured - total) < 4 * error
    by_draw = formula_floor(h_curves(task, np.random.default_rng(2), 4000), counts)
    assert abs(by_draw.mean() - total) < 4 * by_draw.std() / math.sqrt(4000)


@pytest.mark.parametrize("task", [HMM(12), Templates(12)], ids=lambda task: task.name)
def test_curve_measurement_and_numbers_agree(task):
    h_DL = h_curves(task, np.random.default_rng(3), 500)
    entropies = h_DL.sum(1)
    error = math.hypot(entropies.std() / math.sqrt(500), task.exact.error)
    assert abs(entropies.mean() - task.exact.entropy) < 4 * error
    assert (np.diff(h_DL.mean(0)) < 0.01).all()  # knowing more never hurts on average
    for steps in (1, 2, 4):
        counts = equal_counts(12, steps)
        by_draw = formula_floor(h_DL, counts)
        measured, measured_error = factorised_floor(task, counts, 2000, np.random.default_rng(4))
        assert abs(measured - by_draw.mean()) < 4 * math.hypot(measured_error, by_draw.std() / math.sqrt(500))
    assert factorised_floor(task, equal_counts(12, 12), 50, np.random.default_rng(5)) == pytest.approx((0, 0), abs=1e-9)


def test_binsaw_at_128():
    """Floors of 1, 2, 4, 8, 16 equal steps by another hand, themselves measured: within 4 standard errors of ours."""
    task = Binsaw()
    h_DL = h_curves(task, np.random.default_rng(6), 128)
    for steps, other in {1: 21.1, 2: 9.69, 4: 4.38, 8: 1.86, 16: 0.78}.items():
        counts = equal_counts(128, steps)
        by_draw = formula_floor(h_DL, counts)
        error = by_draw.std() / math.sqrt(len(by_draw))
        assert abs(by_draw.mean() - other) < 4 * error
        if steps in (2, 4, 8):
            measured, measured_error = factorised_floor(task, counts, 500, np.random.default_rng(7))
            assert abs(measured - other) < 4 * measured_error < 1
            assert abs(measured - by_draw.mean()) < 4 * math.hypot(measured_error, error)
