"""FUJI with codes on sequences few enough to be summed: its bound on every path, and the samplers' laws."""

import itertools

import numpy as np
import pytest
import torch

from harness.errors import UserError
from lddm.fuji_discrete import FUJIDiscrete, FUJIDiscreteOptions
from lddm.joint_code_network import known
from lddm.paths import make_path
from lddm.samplers.codes import Codes
from lddm.samplers.encoder import Encoder
from lddm.samplers.joint_codes import JointCodes
from tests.kit.toys import (
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    sampler_of,
    scramble,
    tiny_problem,
)
from tests.lddm.test_laws_codes import L, M, S, V, X, mean_bound_and_entropy, mixture_law, rows

PATHS = [
    {"path": "lead", "lead": 3.0},
    {"path": "offset", "offset": 0.4},
    {"path": "latent_first"},
    {"path": "through", "corners": [0.3, 1.0, 0.0, 0.5]},
]


def fitted(seed: int = 0, **options) -> FUJIDiscrete:
    torch.manual_seed(seed)
    options = {"slots": S, "codes": M, "em_steps": 30} | options
    method = FUJIDiscrete(tiny_problem(V, L), FUJIDiscreteOptions(**options))
    method.fit(rows(4000))
    return method.eval()


def law_of_mixture(method: FUJIDiscrete) -> np.ndarray:
    return mixture_law(method.mixture, X.view(-1, 2)).view(-1, S).prod(1).numpy()


def patterns(base: int, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(base), repeat=length)))


@torch.no_grad()
def laws(method: FUJIDiscrete, x_BL: torch.Tensor, c_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L, V) and (B, S, M): what the network says everywhere; of what is shown, that."""
    found = method.network(x_BL, c_BS, method.mixture, x_BL == V, c_BS == M)
    said = []
    for id_BR, logits, size in zip((x_BL, c_BS), found, (V, M), strict=True):
        p_BRV = torch.nn.functional.one_hot(id_BR, size + 1)[..., :size].double()
        p_BRV[id_BR == size] = logits.whole().double().softmax(-1)
        said.append(p_BRV)
    return said[0], said[1]


def chance(p_RV: torch.Tensor, pattern_PR: torch.Tensor, rate: float, size: int) -> torch.Tensor:
    """Probability of each pattern after one step that reveals each mask with a probability, (P,)."""
    stays = torch.full((len(p_RV), 1), 1.0 - rate, dtype=torch.float64)
    step_RV = torch.cat((rate * p_RV, stays), dim=1)
    return step_RV[torch.arange(len(p_RV)), pattern_PR].prod(1)


def agrees(counts_X: np.ndarray, law_X: np.ndarray) -> bool:
    """By chi-square, with the rarest sequences as one."""
    rare_X = counts_X.sum() * law_X < 10
    counts, law = (np.append(each_X[~rare_X], each_X[rare_X].sum()) for each_X in (counts_X, law_X))
    return chi_square_p(counts, law) > 1e-3


# ---- the start ------------------------------------------------------------------------------------------------------
def test_a_fresh_network_knows_what_the_mixture_knows():
    """By Bayes' rule written out: a code given what is shown of its segment, and a token given that or the code."""
    method = fitted()
    m, x_1L = method.mixture, torch.tensor([[2, V, V, V]])
    p_MCV = m.log_table_MF.double().exp().view(M, 2, V)
    weight_M = m.log_weight_M.double().exp() * p_MCV[:, 0, 2]
    score_HM, law_BLV = known(x_1L, torch.tensor([[M, 1]]), m)
    assert score_HM[0].double().exp() == pytest.approx(weight_M, abs=1e-6) and len(score_HM) == 1
    assert law_BLV[0, 1].exp() == pytest.approx((weight_M @ p_MCV[:, 1] / weight_M.sum()).float(), abs=1e-6)
    assert law_BLV[0, 2:].exp() == pytest.approx(p_MCV[1].float(), abs=1e-6)


@pytest.mark.parametrize("options", PATHS, ids=lambda o: o["path"])
def test_on_every_path_the_bound_is_tight_where_the_network_adds_nothing(options):
    method = fitted()
    path = make_path(options["path"], **{name: value for name, value in options.items() if name != "path"})

    class OnPath:
        """The method with its bound on one path."""

        def bound(self, x_BL, generator):
            return method.bound(x_BL, generator, path)

    mean_X, error_X = bound_by_x(OnPath(), X, copies=4, repeats=60)
    z_X = (mean_X + np.log(law_of_mixture(method))) / error_X
    assert np.abs(z_X).max() < 4.5 and np.sqrt(np.mean(z_X**2)) == pytest.approx(1.0, abs=0.4), z_X


def test_bound_of_a_network_that_says_something_else_is_above_the_best_law():
    total, entropy = mean_bound_and_entropy(scramble(fitted(), std=0.2))
    assert total > entropy


# ---- samplers -------------------------------------------------------------------------------------------------------
def test_in_one_call_tokens_are_drawn_apart():
    method = scramble(fitted(), std=0.2)
    p_LV = laws(method, torch.full((1, L), V), torch.full((1, S), M))[0][0]
    law_X = p_LV[torch.arange(L), X].prod(1).numpy()
    drawn = sampler_of(method, JointCodes).draw(20_000, 1, generator_of(1))
    assert (drawn.nfe_latent, drawn.nfe_token) == (0, 1)
    assert agrees(counts_of(drawn.x_NL, V), law_X)


def test_two_calls_have_the_law_of_their_definition():
    """Every state of tokens and codes after the first call, and what the second makes of it; codes are ahead."""
    method, lead = scramble(fitted(), std=0.2), 3.0
    x_PL, c_QS = patterns(V + 1, L), patterns(M + 1, S)
    p_BLV, p_BSM = laws(method, torch.full((1, L), V), torch.full((1, S), M))
    at_P = chance(p_BLV[0], x_PL, 0.5, V)
    at_Q = chance(p_BSM[0], c_QS, 1.0 - 0.5**lead, M)
    law_X = torch.zeros(len(X), dtype=torch.float64)
    for c_S, at in zip(c_QS, at_Q, strict=True):
        p_PLV, _ = laws(method, x_PL, c_S.expand(len(x_PL), -1))
        each_PX = p_PLV[:, torch.arange(L), X].prod(-1)
        law_X += at * (at_P @ each_PX)
    assert float(law_X.sum()) == pytest.approx(1.0)
    drawn = sampler_of(method, JointCodes, lead=lead).draw(30_000, 2, generator_of(2))
    assert agrees(counts_of(drawn.x_NL, V), law_X.numpy())


@pytest.mark.parametrize("nfe", [2, 5])
def test_codes_first_a_fresh_network_draws_the_mixture(nfe):
    method = fitted()
    drawn = sampler_of(method, JointCodes, path="latent_first").draw(20_000, nfe, generator_of(nfe))
    assert (drawn.nfe_latent, drawn.nfe_token) == (nfe // 2, nfe - nfe // 2)
    assert agrees(counts_of(drawn.x_NL, V), law_of_mixture(method))


def test_what_is_given_says_which_codes():
    """Half of each segment given: the other half has the mixture's conditional law, codes first."""
    method = fitted()
    x_NL, hidden_NL = X[7:8].repeat(20_000, 1), torch.tensor([[False, True, False, True]]).expand(20_000, -1)
    filled = sampler_of(method, JointCodes, path="latent_first").fill(x_NL, hidden_NL, 2, generator_of(3)).x_NL
    assert torch.equal(filled[:, ::2], x_NL[:, ::2])
    agrees_X = (X[:, ::2] == X[7, ::2]).all(1).numpy()
    assert chi_square_p(counts_of(filled, V), law_of_mixture(method) * agrees_X) > 1e-3


# ---- what it is not -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("trained", "cls", "options", "words"),
    [
        ({"times": "path"}, JointCodes, {"path": "offset"}, "choose times=independent"),
        ({"times": "path"}, Encoder, {}, "choose times=independent"),
        ({}, Codes, {}, "choose sampler joint_codes"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(trained, cls, options, words):
    with pytest.raises(UserError, match=words) as caught:
        sampler_of(fitted(**trained), cls, **options)
    assert "\n" not in str(caught.value)
