"""SEDD against MDLM at the same conditional probabilities, and its sampler's law by enumeration."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from baselines.samplers.tweedie import Tweedie
from baselines.sedd import SEDD, SEDDOptions, score_entropy
from harness.nn.slices import Logits
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    index_of,
    nelbo_by_enumeration,
    one_thread,  # noqa: F401
    random_table,
    sampler_law,
    sampler_of,
    tiny_problem,
)

V, L = 3, 2


class Ratios(nn.Module):
    """log of the ratios of a table, each pattern's times `total_P`; the method takes log V off what a network says."""

    def __init__(self, table: TableNetwork, total_P: torch.Tensor) -> None:
        super().__init__()
        self.log_PLV = table.logits_PLV.log_softmax(-1) + total_P.log()[:, None, None] + np.log(V)

    def forward(self, x_BL, select_BL, t_B):
        return Logits.of(self.log_PLV[index_of(x_BL, V + 1)][select_BL])


def made(total_P: torch.Tensor) -> tuple[SEDD, TableNetwork]:
    table = random_table(V, L, seed=3)
    method = SEDD(tiny_problem(V, L), SEDDOptions()).eval()
    method.network = Ratios(table, total_P)
    return method, table


def test_the_bound_is_mdlms_where_ratios_sum_to_1():
    method, table = made(torch.ones((V + 1) ** L))
    x_XL = all_sequences(V, L)
    mean_X, se_X = bound_by_x(method, x_XL, copies=400, repeats=20)
    expected_X = np.array([nelbo_by_enumeration(table, tuple(x), V) for x in x_XL.tolist()])
    assert (np.abs(mean_X - expected_X) < 4.5 * se_X).all()


def test_elsewhere_it_is_above_it_by_what_the_sum_is_off():
    """Z - 1 - log Z for each masked token; in the mean over times the weights of L tokens sum to L."""
    total = 1.7
    method, table = made(torch.full(((V + 1) ** L,), total))
    log_p_MV = table.logits_PLV[-1].log_softmax(-1)
    token_M = torch.tensor([1, 2])
    off_M = score_entropy(log_p_MV + np.log(total), token_M) + log_p_MV[range(L), token_M]
    assert off_M.numpy() == pytest.approx(total - 1 - np.log(total), abs=1e-5)
    x_XL = all_sequences(V, L)
    mean_X, se_X = bound_by_x(method, x_XL, copies=400, repeats=20)
    expected_X = np.array([nelbo_by_enumeration(table, tuple(x), V) for x in x_XL.tolist()])
    expected_X += (total - 1 - np.log(total)) * L
    assert (np.abs(mean_X - expected_X) < 4.5 * se_X).all()


@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_where_ratios_sum_to_1_a_step_is_that_of_masked_diffusion(nfe):
    method, table = made(torch.ones((V + 1) ** L))
    law_X = sampler_law(table, np.linspace(0, 1, nfe + 1).tolist(), V, L)
    drawn = sampler_of(method, Tweedie).draw(60_000, nfe, generator_of(nfe))
    assert chi_square_p(counts_of(drawn.x_NL, V), law_X) > 1e-3


def test_where_they_do_not_a_position_is_revealed_by_their_sum():
    """Two steps of a half each: at all masks Z = 1.6, so that a token comes in the first step with .8; the last reveals all."""
    total_P = torch.ones((V + 1) ** L)
    total_P[-1] = 1.6
    method, table = made(total_P)
    law_X, first_LV = np.zeros(V**L), table.probabilities((V, V))
    for shown in itertools.product((False, True), repeat=L):
        chance = np.prod([0.8 if s else 0.2 for s in shown])
        for k, x in enumerate(all_sequences(V, L).tolist()):
            before = tuple(v if s else V for v, s in zip(x, shown, strict=True))
            after_LV = table.probabilities(before)
            law_X[k] += chance * np.prod([(first_LV if s else after_LV)[i, x[i]] for i, s in enumerate(shown)])
    assert law_X.sum() == pytest.approx(1.0)
    plain_X = sampler_law(table, [0.0, 0.5, 1.0], V, L)
    counts = counts_of(sampler_of(method, Tweedie).draw(60_000, 2, generator_of(5)).x_NL, V)
    assert chi_square_p(counts, law_X) > 1e-3 and chi_square_p(counts, plain_X) < 1e-3


def test_training_ends_at_ratios_that_sum_to_1():
    """One token, two symbols of shares .8 and .2: the least score entropy is at the shares themselves."""
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        nats = score_entropy(logits.expand(2, -1), torch.tensor([0, 1]))
        (0.8 * nats[0] + 0.2 * nats[1]).backward()
        optimizer.step()
    assert logits.exp().detach().numpy() == pytest.approx([0.8, 0.2], abs=0.01)
