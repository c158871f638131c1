"""A masked model with n-grams in its head, against sums over all sequences."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines.mdlm_chain import MDLMChain, MDLMChainOptions
from baselines.samplers.ancestral import Ancestral
from baselines.samplers.chain import Chain
from harness.nn.slices import Logits
from tests.kit.toys import (
    all_sequences,
    chi_square_p,
    counts_of,
    generator_of,
    index_of,
    one_thread,  # noqa: F401
    random_table,
    sampler_of,
    tiny_problem,
)

V, L = 3, 3
X = all_sequences(V, L)
ROWS = np.random.default_rng(3).choice(V, p=[0.6, 0.3, 0.1], size=(300, L)).cumsum(1) % V


class Potentials(nn.Module):
    """A table in the place of the network, whose numbers have a gradient."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.logits_PLV = nn.Parameter(random_table(V, L, seed).logits_PLV.clone())

    def forward(self, x_BL, select_BL):
        return Logits.of(self.logits_PLV[index_of(x_BL, V + 1)][select_BL])


def fitted(order: int = 2) -> MDLMChain:
    method = MDLMChain(tiny_problem(V, L), MDLMChainOptions(order=order))
    method.fit(ROWS)
    method.network = Potentials()
    return method.eval()


def log_joint(method: MDLMChain, shown_L: torch.Tensor) -> torch.Tensor:
    """log p(x | what is shown), (X,) float64, by its definition."""
    logits_LV = method.network.logits_PLV[index_of(shown_L[None], V + 1)][0].double()
    hidden_L = shown_L == V
    own_X = sum((logits_LV[i][X[:, i]] for i in range(L) if hidden_L[i]), torch.zeros(len(X), dtype=torch.float64))
    agrees_X = ((shown_L == X) | hidden_L).all(1)
    return (method.chain.log_p(X) + own_X).masked_fill(~agrees_X, -torch.inf).log_softmax(0)


@pytest.mark.parametrize("order", [2, 3])
def test_one_call_draws_the_joint_law_and_knows_its_probabilities(order):
    method = fitted(order)
    law_X = log_joint(method, torch.full((L,), V)).exp().detach()
    sampler = sampler_of(method, Chain)
    drawn_NL = sampler.draw(20_000, 1, generator_of(0)).x_NL
    assert chi_square_p(counts_of(drawn_NL, V), law_X.numpy()) > 1e-3
    with torch.no_grad():
        assert torch.allclose(sampler.path_nll(X, 1, generator_of(0)), -law_X.log(), atol=1e-5)
    apart_NL = sampler_of(method, Ancestral).draw(20_000, 1, generator_of(0)).x_NL
    assert chi_square_p(counts_of(apart_NL, V), law_X.numpy()) < 1e-6, "each by itself is another law"


def test_two_calls_have_the_law_that_their_paths_say():
    sampler, paths = sampler_of(fitted(), Chain), 400
    with torch.no_grad():
        of_paths = [(-sampler.path_nll(X, 2, generator_of(seed))).exp() for seed in range(paths)]
        # Each sequence of a batch has a path of its own: one path for all is one for which the probabilities sum to 1.
        law_X = torch.stack(of_paths).mean(0)
    assert float(law_X.sum()) == pytest.approx(1.0, abs=0.02)
    drawn_NL = sampler.draw(20_000, 2, generator_of(1)).x_NL
    assert chi_square_p(counts_of(drawn_NL, V), (law_X / law_X.sum()).numpy()) > 1e-3


def test_what_one_token_is_by_itself_is_the_joint_law_summed():
    method, shown_L = fitted(), torch.tensor([V, 1, V])
    law_X = log_joint(method, shown_L).exp()
    expected_LV = torch.einsum("x,xlv->lv", law_X, F.one_hot(X, V).double())
    found_MV = method.denoise(shown_L[None], (shown_L == V)[None], torch.ones(1))
    assert torch.allclose(found_MV.double().exp(), expected_LV[[0, 2]], atol=1e-5)


def test_loss_and_its_gradient_are_those_of_the_joint_likelihood():
    method, x_BL = fitted(), X[[5, 11, 11, 20, 26]]
    loss = method.loss(x_BL, generator_of(2))
    loss.total.backward()
    found = method.network.logits_PLV.grad.clone()
    method.zero_grad()
    _, xt_BL, masked_BL = method.noisy(x_BL, generator_of(2))
    nll = -sum(log_joint(method, shown_L)[index_of(x_L[None], V)[0]] for shown_L, x_L in zip(xt_BL, x_BL, strict=True))
    expected = nll / masked_BL.sum()
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-4)
    assert torch.allclose(found, method.network.logits_PLV.grad, atol=1e-5) and found.abs().max() > 0.01


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_sharpens_the_joint_law(temperature):
    method = fitted(3)
    law_X = (log_joint(method, torch.full((L,), V)) / temperature).softmax(0).detach().numpy()
    counts_X = counts_of(sampler_of(method, Chain).draw(20_000, 1, generator_of(0), temperature).x_NL, V)
    rare_X = law_X * counts_X.sum() < 10
    counts = np.append(counts_X[~rare_X], counts_X[rare_X].sum())
    probabilities = np.append(law_X[~rare_X], law_X[rare_X].sum())
    if probabilities[-1] * counts.sum() < 5:
        counts, probabilities = counts[:-1], probabilities[:-1]
    assert chi_square_p(counts, probabilities) > 1e-3
