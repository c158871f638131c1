"""What every exact task offers, at its default size: shapes, dtypes, the chain rule, numbers that agree with its samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.tasks import parts
from harness.tasks.base import ExactTask
from harness.tasks.binsaw import NODES, Binsaw, bit_probabilities
from harness.tasks.hmm import HMM
from harness.tasks.permutation import Permutation
from harness.tasks.templates import Templates

TASKS: list[ExactTask] = [Binsaw(), HMM(), Templates(), Permutation()]
MORE: list[ExactTask] = [Binsaw(1), Binsaw(6), Binsaw(15), HMM(1), HMM(2, 5, 5), Templates(1, 1, 2), Permutation(2)]


def name_of(task: ExactTask) -> str:
    return f"{task.name}-{task.length}"


def drawn(task: ExactTask, n: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(task.sample(n, np.random.default_rng(seed)))


@pytest.mark.parametrize("task", TASKS + MORE, ids=name_of)
def test_shapes_and_dtypes(task):
    n, L, V = 7, task.length, task.vocab_size
    x_NL = drawn(task, n)
    assert x_NL.dtype == torch.int64 and x_NL.shape == (n, L) and x_NL.min() >= 0 and x_NL.max() < V
    log_N = task.log_prob(x_NL)
    assert log_N.dtype == torch.float64 and log_N.shape == (n,) and torch.isfinite(log_N).all()
    assert torch.equal(task.log_prob(x_NL.to(torch.uint8)), log_N)
    log_NLV = task.conditionals(x_NL, torch.zeros(n, L, dtype=torch.bool))
    assert log_NLV.dtype == torch.float64 and log_NLV.shape == (n, L, V)
    assert torch.allclose(log_NLV.exp().sum(2), torch.ones(n, L).double(), atol=1e-12)
    statistics_NF = task.statistics(x_NL)
    assert statistics_NF.dtype == torch.float64 and statistics_NF.ndim == 2 and len(statistics_NF) == n
    assert torch.isfinite(statistics_NF).all()
    posterior_NC = task.posterior(x_NL)
    if posterior_NC is not None:
        assert posterior_NC.dtype == torch.float64 and torch.allclose(posterior_NC.sum(1), torch.ones(n).double())


@pytest.mark.parametrize("task", TASKS + MORE, ids=name_of)
def test_nothing_known_gives_marginals_that_add_up_to_the_numbers(task):
    """Whatever the ids are; sum of marginal entropies = H + total correlation."""
    unknown = torch.zeros(2, task.length, dtype=torch.bool)
    masked_NL = torch.full((2, task.length), task.vocab_size)
    log_NLV = task.conditionals(masked_NL, unknown)
    assert torch.equal(log_NLV, task.conditionals(drawn(task, 2), unknown))
    exact = task.exact
    assert parts.entropy(log_NLV[0].exp()).sum().item() == pytest.approx(
        exact.entropy + exact.total_correlation, abs=1e-9
    )


@pytest.mark.parametrize("task", TASKS + MORE, ids=name_of)
def test_known_positions_are_point_masses(task):
    x_NL = drawn(task)
    known_NL = torch.rand(x_NL.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    p_NLV = task.conditionals(x_NL, known_NL).exp()
    hot_NLV = torch.nn.functional.one_hot(x_NL, task.vocab_size).double()
    assert torch.equal(p_NLV[known_NL], hot_NLV[known_NL])


@pytest.mark.parametrize("task", TASKS + MORE, ids=name_of)
def test_chain_rule_in_random_orders(task):
    x_NL = drawn(task, 20)
    rank_NL = torch.from_numpy(np.random.default_rng(1).permuted(np.tile(np.arange(task.length), (20, 1)), axis=1))
    total_N = torch.zeros(20, dtype=torch.float64)
    for k in range(task.length):
        seen_NL = torch.where(rank_NL < k, x_NL, task.vocab_size)
        log_NLV = task.conditionals(seen_NL, rank_NL < k)
        total_N += log_NLV.gather(2, x_NL[..., None])[..., 0][rank_NL == k]
    assert torch.allclose(total_N, task.log_prob(x_NL), atol=1e-9, rtol=0)


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_entropy_agrees_with_samples(task):
    nll_N = -task.log_prob(drawn(task, 20_000, seed=5))
    standard_error = math.hypot(nll_N.std().item() / math.sqrt(len(nll_N)), task.exact.error)
    assert abs(nll_N.mean().item() - task.exact.entropy) < 4 * standard_error + 1e-9
    assert task.exact.error < 0.02


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_ids_outside_the_vocabulary_are_refused(task):
    x_NL = drawn(task, 2)
    x_NL[1, 0] = task.vocab_size
    for call in (task.log_prob, task.statistics, lambda x: task.conditionals(x, torch.ones_like(x).bool())):
        with pytest.raises(ValueError, match=str(task.vocab_size)):
            call(x_NL)


# ---- what the drawn numbers rest on -----------------------------------------------------------------------------------
@pytest.mark.parametrize("task", [Binsaw(12), Templates(5, 5, 4, 0.6)], ids=name_of)
def test_drawn_information_agrees_with_enumeration(task):
    information, error = task.drawn_information(4096)
    assert task.exact.error == 0 and 0 < error < 0.02
    assert abs(information - task.exact.latent_information) < 4 * error


def test_drawn_path_entropy_agrees_with_enumeration():
    task = HMM(6, 2, 4, 0.7, 0.8)
    left, error = task.drawn_path_entropy(4096)
    start_and_moves = math.log(2) + 5 * -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert task.exact.error == 0 and 0 < error < 0.02
    assert abs(left - (start_and_moves - task.exact.latent_information)) < 4 * error


@pytest.mark.parametrize("length", [30, 33, 128])
def test_more_nodes_change_nothing(length):
    """The least likely sequences too: alternating bits, all ones, noise, and those of the task itself."""
    task, finer = Binsaw(length), Binsaw(length, nodes=3 * NODES)
    noise_NL = torch.from_numpy(np.random.default_rng(0).integers(2, size=(20, length)))
    ones_1L = torch.ones(1, length).long()
    x_NL = torch.cat([drawn(task, 20), noise_NL, ones_1L, 1 - ones_1L, torch.arange(length)[None] % 2])
    assert torch.allclose(task.log_prob(x_NL), finer.log_prob(x_NL), atol=1e-9, rtol=0)
    assert torch.allclose(task.statistics(x_NL), finer.statistics(x_NL), atol=1e-9, rtol=0)


def given_u_on_midpoints(grid: int) -> float:
    p_GL = bit_probabilities((np.arange(grid) + 0.5) / grid, 128)
    return -(p_GL * np.log(p_GL) + (1 - p_GL) * np.log1p(-p_GL)).sum(1).mean()


def test_binsaw_at_128_against_a_plain_grid():
    """Another quadrature, other draws: midpoints over the whole circle, and `log p(x | u) - log p(x)` at the true u."""
    rng = np.random.default_rng(11)
    p_GL = bit_probabilities((np.arange(2048) + 0.5) / 2048, 128)
    u_N = (np.arange(4096) + rng.random(4096)) / 4096
    p_NL = bit_probabilities(u_N, 128)
    x_NL = (rng.random(p_NL.shape) < p_NL).astype(float)
    log_NG = x_NL @ np.log(p_GL).T + (1 - x_NL) @ np.log1p(-p_GL).T
    top_N = log_NG.max(1)
    log_p_N = top_N + np.log(np.exp(log_NG - top_N[:, None]).mean(1))
    assert np.abs(log_p_N - Binsaw().log_prob(torch.from_numpy(x_NL)).numpy()).max() < 1e-3
    gain_N = np.log(np.where(x_NL == 1, p_NL, 1 - p_NL)).sum(1) - log_p_N
    exact, error = TASKS[0].exact, gain_N.std() / 64
    assert abs(gain_N.mean() - exact.latent_information) < 4 * math.hypot(error, exact.error)
    # Midpoints err by a multiple of 1 / G^2: 1.8e-4 with G = 2048, 1.1e-5 with G = 8192, so Richardson's step removes it.
    coarse, fine = (given_u_on_midpoints(grid) for grid in (2048, 8192))
    assert exact.entropy - exact.latent_information == pytest.approx(fine + (fine - coarse) / 15, abs=1e-6)
    assert exact.entropy + exact.total_correlation == pytest.approx(128 * math.log(2), abs=1e-9)


def test_templates_of_32_tell_their_class():
    exact = Templates().exact
    assert exact.latent_information == pytest.approx(math.log(16), abs=1e-6)
    token = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 7))
    assert exact.entropy == pytest.approx(math.log(16) + 32 * token, abs=1e-6)


def test_permutation_numbers_by_hand():
    task = Permutation()
    assert task.one_step_validity == pytest.approx(720 / 46656)
    assert task.exact.entropy == pytest.approx(math.log(720))
    assert task.exact.total_correlation == pytest.approx(-math.log(task.one_step_validity))
    assert len(task.support()) == 720 and Permutation(7).support() is None
    assert task.support().unique(dim=0).shape == (720, 6) and torch.isfinite(task.log_prob(task.support())).all()
