"""Samplers on the weights of a masked model against known answers: the nucleus, the order by certainty, the grid of times."""

import itertools
import math

import numpy as np
import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.confidence import Confidence, log_margin, most_certain
from baselines.samplers.cosine_grid import CosineGrid
from baselines.samplers.top_p import TopP, nucleus
from harness.config.fields import NoOptions
from harness.errors import UserError
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    random_table,
    sampler_law,
    sampler_of,
    tiny_problem,
)

V, L = 3, 2


def mdlm_with(network: torch.nn.Module, length: int = L, vocab: int = V) -> MDLM:
    method = MDLM(tiny_problem(vocab, length), MDLMOptions()).eval()
    method.network = network
    return method


# ---- top-p ----------------------------------------------------------------------------------------------------------
def test_the_nucleus_holds_the_likeliest_tokens_and_the_one_that_crosses_p():
    p_MV = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.5, 0.3], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)

    def kept(p: float) -> list[list[int]]:
        return [torch.isfinite(row).nonzero()[:, 0].tolist() for row in nucleus(p_MV.log(), p)]

    assert kept(0.4) == [[0], [2], [0]], "the token that crosses p stays, so that there is always one"
    assert kept(0.7) == [[0, 1], [2, 3], [0]]
    assert kept(0.81) == [[0, 1, 2], [1, 2, 3], [0]]
    assert kept(1.0) == [[0, 1, 2, 3]] * 3
    assert nucleus(p_MV.float().log(), 0.7).dtype == torch.float32, "what it leaves is as it was"


def test_of_equal_tokens_the_first_are_kept():
    assert torch.isfinite(nucleus(torch.zeros(1, 4), 0.5))[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_top_p_draws_the_law_of_the_truncated_table(temperature):
    """Every conditional truncated and made whole again by hand, then MDLM's law over all paths."""
    table = random_table(V, L, seed=3)
    p = (table.logits_PLV.double() / temperature).softmax(-1)
    truncated = torch.zeros_like(p)
    for i, j in itertools.product(range(p.shape[0]), range(L)):
        total = 0.0
        for v in p[i, j].argsort(descending=True).tolist():
            if total >= 0.6:
                break
            truncated[i, j, v] = p[i, j, v]
            total += float(p[i, j, v])
    logits = (truncated / truncated.sum(-1, keepdim=True)).log().clamp(min=-80)
    law_X = sampler_law(TableNetwork(logits), [0.0, 0.5, 1.0], V, L)
    drawn = sampler_of(mdlm_with(table), TopP, p=0.6).draw(60_000, 2, generator_of(1), temperature)
    law_X = np.where(law_X < 1e-12, 0.0, law_X)
    assert chi_square_p(counts_of(drawn.x_NL, V), law_X) > 1e-3
    assert (law_X == 0).any(), "something is cut off, or nothing is tested"


def test_top_p_of_one_is_the_ancestral_sampler():
    table = random_table(V, L, seed=4)
    one = sampler_of(mdlm_with(table), TopP, p=1.0).draw(500, 2, generator_of(2)).x_NL
    assert torch.equal(one, sampler_of(mdlm_with(table)).draw(500, 2, generator_of(2)).x_NL)


# ---- confidence -----------------------------------------------------------------------------------------------------
def test_most_certain_takes_so_many_and_of_equal_ones_the_first():
    certainty = torch.tensor([[-1.0, -3.0, -1.0, -2.0]])
    assert most_certain(certainty, 1).tolist() == [[True, False, False, False]]
    assert most_certain(certainty, 3).tolist() == [[True, False, True, True]]
    assert not most_certain(certainty, 0).any()


def confidence_law(table: TableNetwork) -> np.ndarray:
    """Two calls without noise, by enumeration: of two drawn tokens the likelier one stays, the other is drawn again."""
    law = np.zeros((V, V))
    first = table.probabilities((V, V))
    for a, b in itertools.product(range(V), repeat=2):
        chance = first[0, a] * first[1, b]
        if first[0, a] >= first[1, b]:  # of equal ones the first
            law[a] += chance * table.probabilities((a, V))[1]
        else:
            law[:, b] += chance * table.probabilities((V, b))[0]
    return law.ravel()


def test_greedy_confidence_draws_the_enumerated_law():
    table = random_table(V, L, seed=5)
    drawn = sampler_of(mdlm_with(table), Confidence, noise=0.0).draw(60_000, 2, generator_of(3))
    assert chi_square_p(counts_of(drawn.x_NL, V), confidence_law(table)) > 1e-3


def test_much_noise_makes_the_order_random():
    """Then each position comes first equally often, whatever was drawn: the law of a random order, one token a call."""
    table = random_table(V, L, seed=6)
    first, law = table.probabilities((V, V)), np.zeros((V, V))
    for a in range(V):
        law[a] += 0.5 * first[0, a] * table.probabilities((a, V))[1]
        law[:, a] += 0.5 * first[1, a] * table.probabilities((V, a))[0]
    drawn = sampler_of(mdlm_with(table), Confidence, noise=1e6).draw(60_000, 2, generator_of(4))
    assert chi_square_p(counts_of(drawn.x_NL, V), law.ravel()) > 1e-3
    assert chi_square_p(counts_of(drawn.x_NL, V), confidence_law(table)) < 1e-3, "the test can tell them apart"


def test_certain_positions_are_revealed_first():
    """One position is certain, the others are uniform: it is shown after the first call of each sequence."""
    seen = []

    class Uneven(torch.nn.Module):
        def forward(self, x_BL, select_BL=None, t_B=None):
            seen.append(x_BL.clone())
            logits = torch.zeros(*x_BL.shape, V)
            logits[:, 2, 1] = 50.0
            return logits[select_BL]

    sampler_of(mdlm_with(Uneven(), length=4), Confidence, noise=0.0).draw(20, 4, generator_of(5))
    assert ((seen[1] != V) == torch.tensor([False, False, True, False])).all()
    assert [int((x != V).sum(1).max()) for x in seen] == [0, 1, 2, 3]


def test_the_margin_is_that_of_the_two_likeliest_tokens():
    p_MV = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.4, 0.4, 0.2]], dtype=torch.float64)
    assert log_margin(p_MV.log()).exp().tolist() == pytest.approx([0.2, 0.5, 0.0])
    assert torch.isfinite(log_margin(p_MV.log())).all(), "minus infinity is for what is shown already"


def test_greedy_margin_draws_the_enumerated_law():
    """Two calls: the position whose margin is larger is shown first, whatever was drawn there."""
    table = random_table(V, L, seed=5)
    first = table.probabilities((V, V))
    margin = [np.sort(p)[-1] - np.sort(p)[-2] for p in first]
    law, early = np.zeros((V, V)), 0 if margin[0] >= margin[1] else 1
    for a in range(V):
        rest = table.probabilities((a, V) if early == 0 else (V, a))[1 - early]
        law[(a, slice(None)) if early == 0 else (slice(None), a)] = first[early, a] * rest
    drawn = counts_of(
        sampler_of(mdlm_with(table), Confidence, noise=0.0, by="margin").draw(60_000, 2, generator_of(3)).x_NL, V
    )
    assert chi_square_p(drawn, law.ravel()) > 1e-3
    assert chi_square_p(drawn, confidence_law(table)) < 1e-3, "the test can tell it from confidence"


# ---- the cosine grid ------------------------------------------------------------------------------------------------
def test_the_grid_is_a_cosine():
    method = mdlm_with(random_table(V, L, seed=7))
    alphas = sampler_of(method, CosineGrid).alphas(3)
    assert alphas == pytest.approx([0.0, 1 - math.cos(math.pi / 6), 1 - math.cos(math.pi / 3), 1.0])
    assert alphas[0] == 0.0 and alphas[-1] == 1.0
    steps = np.diff(sampler_of(method, CosineGrid).alphas(8))
    assert (np.diff(steps) > 0).all(), "each call reveals more than the one before"


def test_the_cosine_grid_draws_the_law_of_its_steps():
    table = random_table(V, L, seed=8)
    sampler = sampler_of(mdlm_with(table), CosineGrid)
    law_X = sampler_law(table, sampler.alphas(2), V, L)
    drawn = sampler.draw(60_000, 2, generator_of(6))
    assert chi_square_p(counts_of(drawn.x_NL, V), law_X) > 1e-3
    assert chi_square_p(counts_of(drawn.x_NL, V), sampler_law(table, [0.0, 0.5, 1.0], V, L)) < 1e-3
    x_XL, copies = all_sequences(V, L), 4000
    nll_CX = sampler.path_nll(x_XL.repeat(copies, 1), 2, generator_of(7)).view(copies, -1)
    assert (-nll_CX).exp().mean(0).numpy() == pytest.approx(law_X, abs=0.01)


# ---- bad input ------------------------------------------------------------------------------------------------------
def test_samplers_that_need_another_method_say_so():
    from baselines.autoregressive import Autoregressive

    with pytest.raises(UserError, match="TopP draws from MaskedModel, not from Autoregressive"):
        sampler_of(Autoregressive(tiny_problem(), NoOptions()), TopP)
