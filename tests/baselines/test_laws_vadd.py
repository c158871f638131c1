"""VADD against mixtures of products written out: laws, bounds in closed form, and what it is without a latent."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import nn

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.prior import Prior
from baselines.vadd import VADD, VADDOptions
from harness.diffusion.ancestral import importance_nll
from harness.nn.slices import Logits
from harness.tasks.templates import Templates
from tests.baselines.test_laws_noise import TABLES, BySign, L, V, fresh_law
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    monte_carlo,
    nelbo_by_enumeration,
    one_thread,  # noqa: F401
    sampler_law,
    sampler_of,
    tiny_problem,
)

X = all_sequences(V, L)
#: What each text's q(z) is: that of the second table for the last ones.
MEAN_X, LOG_S = torch.linspace(0.7, -0.7, len(X)), -0.2


class ByTable(nn.Module):
    """q(z | x0, x_t) = N(mean of x0, s^2), whatever is masked."""

    def __init__(self, mean_X: torch.Tensor, log_s: float) -> None:
        super().__init__()
        self.mean_X, self.log_s = mean_X, log_s

    def forward(self, x_BL, masked_BL):
        mean_B1 = self.mean_X[x_BL[:, :1] * V + x_BL[:, 1:]]
        return mean_B1, torch.full_like(mean_B1, self.log_s)


def method_with(mean_X: torch.Tensor = MEAN_X, log_s: float = LOG_S, **options) -> VADD:
    method = VADD(tiny_problem(V, L), VADDOptions(noise=1, **options)).eval()
    method.network, method.recognition = BySign(), ByTable(mean_X, log_s)
    return method


def product_of(table: TableNetwork) -> np.ndarray:
    """p(x) in one call, (X,)."""
    return sampler_law(table, [0.0, 1.0], V, L)


def mixed_table() -> TableNetwork:
    """What a token drawn by itself is, over both signs of z."""
    return TableNetwork(torch.stack([table.logits_PLV.softmax(-1) for table in TABLES]).mean(0).log())


# ---- sampler --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nfe", [1, 2])
def test_each_call_has_a_z_of_its_own(nfe):
    alphas = np.linspace(0, 1, nfe + 1).tolist()
    fixed_X = 0.5 * sum(sampler_law(table, alphas, V, L) for table in TABLES)
    fresh_X = fresh_law(alphas) if nfe == 2 else fixed_X
    drawn = {
        calls: counts_of(sampler_of(method_with(), Prior, calls=calls).draw(60_000, nfe, generator_of(1)).x_NL, V)
        for calls in ("fresh", "fixed")
    }
    assert chi_square_p(drawn["fresh"], fresh_X) > 1e-3 and chi_square_p(drawn["fixed"], fixed_X) > 1e-3
    assert nfe == 1 or chi_square_p(drawn["fresh"], fixed_X) < 1e-3


@pytest.mark.parametrize(("nfe", "calls"), [(1, "fresh"), (2, "fresh"), (2, "fixed")])
def test_paths_with_a_recognised_z_have_the_law_of_the_draw_and_their_mean_bounds_it(nfe, calls):
    alphas = np.linspace(0, 1, nfe + 1).tolist()
    fixed_X = 0.5 * sum(sampler_law(table, alphas, V, L) for table in TABLES)
    law_X = fresh_law(alphas) if (nfe, calls) == (2, "fresh") else fixed_X
    sampler, copies = sampler_of(method_with(), Prior, calls=calls), 8000
    nll_CX = sampler.path_nll(X.repeat(copies, 1), nfe, generator_of(2)).view(copies, -1)
    mean_X, se_X = monte_carlo((-nll_CX).exp().numpy())
    assert (np.abs(mean_X - law_X) < 4.5 * se_X).all() and se_X.max() < 0.01
    assert (-importance_nll(nll_CX)).exp().numpy() == pytest.approx(mean_X)
    bound_X, error_X = monte_carlo(nll_CX.numpy())
    assert (bound_X > -np.log(law_X) - 4 * error_X).all()


# ---- bounds ---------------------------------------------------------------------------------------------------------
def test_the_bound_of_one_call_is_cross_entropy_and_kl():
    """In closed form: z is positive with probability Phi(mean / s); the gap is KL(q || p(z | x)), never negative."""
    mean_X, s = MEAN_X.double().numpy(), np.exp(LOG_S)
    positive_X = norm.cdf(mean_X / s)
    nll_X = -positive_X * np.log(product_of(TABLES[0])) - (1 - positive_X) * np.log(product_of(TABLES[1]))
    bound_X = nll_X + 0.5 * (mean_X**2 + s**2 - 1) - LOG_S
    sampler = sampler_of(method_with(), Prior)
    found_X, se_X = monte_carlo(sampler.path_nll(X.repeat(6000, 1), 1, generator_of(3)).view(6000, -1).numpy())
    assert (np.abs(found_X - bound_X) < 4 * se_X).all() and se_X.max() < 0.05
    assert (bound_X > -np.log(0.5 * (product_of(TABLES[0]) + product_of(TABLES[1])))).all()
    said = sampler.method.diagnose(X.repeat(2000, 1), generator_of(4))
    assert said["one_call_bound_nats"] == pytest.approx(bound_X.mean(), abs=0.05)
    assert said["latent_kl_nats_t1"] == pytest.approx((0.5 * (mean_X**2 + s**2 - 1) - LOG_S).mean(), abs=1e-4)


class Averaged:
    """exp of the mean of log(mean of M probabilities), each by either table: in closed form, of no law where M is small."""

    def __init__(self, draws: int) -> None:
        self.draws = draws

    def probabilities(self, x_L: tuple[int, ...]) -> np.ndarray:
        k_K = np.arange(self.draws + 1)[:, None, None] / self.draws
        p, q = (table.probabilities(x_L) for table in TABLES)
        each_K = binom.pmf(np.arange(self.draws + 1), self.draws, 0.5)
        return np.exp(np.tensordot(each_K, np.log(k_K * p + (1 - k_K) * q), axes=1))


def test_the_bound_of_many_calls_is_that_of_tokens_under_a_mean_of_draws():
    exact = {m: np.array([nelbo_by_enumeration(Averaged(m), tuple(x), V) for x in X.tolist()]) for m in (1, 4, 400)}
    assert (exact[1] > exact[4]).all() and (exact[4] > exact[400]).all()
    for draws in (1, 4):
        mean_X, se_X = bound_by_x(method_with(draws=draws), X, copies=400, repeats=24)
        assert (np.abs(mean_X - exact[draws]) < 4 * se_X).all() and np.median(se_X) < 0.1
    law_X = sampler_law(mixed_table(), np.linspace(0, 1, 257).tolist(), V, L)
    assert (exact[400] > -np.log(law_X)).all(), "and above -log p(x) of the draw in many calls"


# ---- training -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["masked_mean", "nelbo"])
def test_with_the_prior_for_q_and_no_use_of_z_the_loss_is_that_of_mdlm(loss):
    class Blind(TableNetwork):
        def forward(self, x_BL, select_BL=None, noise_BD=None):
            return Logits.of(super().forward(x_BL, select_BL))

    method, mdlm = (
        method_with(0 * MEAN_X, 0.0, full_mask=0.0, loss=loss),
        MDLM(tiny_problem(V, L), MDLMOptions(loss=loss)),
    )
    method.network = mdlm.network = Blind(TABLES[0].logits_PLV)
    found, expected = (m.loss(X, generator_of(5)).total for m in (method, mdlm))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    method.options.free_nats = 0.7  # a KL of 0 costs as much as what is free
    if loss == "masked_mean":
        assert float(method.loss(X, generator_of(5)).total) == pytest.approx(float(expected) + 0.7, rel=1e-6)


def test_the_recognition_network_sees_the_text_and_what_is_masked():
    method = VADD(tiny_problem(V, 4), VADDOptions())
    x_BL, some_BL = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[True, False, True, True]])
    laws = [method.recognition(x, m)[0] for x, m in ((x_BL, some_BL), (x_BL, ~some_BL), ((x_BL + 1) % V, some_BL))]
    assert not torch.allclose(laws[0], laws[1]) and not torch.allclose(laws[0], laws[2])


def test_one_call_goes_below_the_best_product():
    """Two texts with errors, 16 tokens: drawn apart, at the data's own frequencies, a sample loses 7.8 nats."""
    task = Templates(16, classes=2, symbols=4, accuracy=0.9)
    data_NL = torch.from_numpy(task.sample(4000, np.random.default_rng(0)).astype(np.int64))
    product_NL = torch.stack([x_N.roll(7 * i) for i, x_N in enumerate(data_NL.T)], dim=1)
    entropy = task.exact.entropy
    floor = -float(task.log_prob(product_NL).mean()) - entropy
    method = VADD(tiny_problem(4, 16, width=32), VADDOptions(warm_weight=0.1))
    optimizer = torch.optim.Adam(method.parameters())
    for step in range(200):
        method.set_stage("latent" if step < 60 else "tokens")
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 200)
        x_BL = data_NL[torch.randint(len(data_NL), (32,), generator=generator_of(step))]
        optimizer.zero_grad()
        method.loss(x_BL, generator_of(step)).total.backward()
        optimizer.step()
    x_NL = sampler_of(method.eval(), Prior).draw(1000, 1, generator_of(0)).x_NL
    excess = -float(task.log_prob(x_NL).mean()) - entropy
    assert floor > 7 and excess < 0.6 * floor, excess
    assert 0.3 < float((task.posterior(x_NL)[:, 0] > 0.5).double().mean()) < 0.7, "and draws both"
    said = method.diagnose(data_NL[:500], generator_of(1))
    assert said["latent_kl_nats_t1"] > 0.5 and said["latent_nats_saved"] > 2 and said["latent_coordinates_in_use"] >= 1
    assert said["one_call_bound_nats"] > entropy
