"""A masked model with a noise input against mixtures of products written out."""

import numpy as np
import pytest
import torch
from torch import nn

from baselines.noise_mdlm import NoiseMDLM, NoiseMDLMOptions, mixture_nats
from baselines.samplers.noise import Noise
from harness.diffusion.ancestral import importance_nll
from harness.nn.slices import Logits
from harness.tasks.templates import Templates
from tests.kit.toys import (
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    nelbo_by_enumeration,
    one_thread,  # noqa: F401
    random_table,
    sampler_law,
    sampler_of,
    tiny_problem,
)

V, L = 3, 2
TABLES = (random_table(V, L, seed=1), random_table(V, L, seed=2))


class BySign(nn.Module):
    """The first table where the noise is positive, else the second: two products, each half of the time."""

    def forward(self, x_BL, select_BL, noise_BD):
        positive_B11 = (noise_BD[:, 0] > 0)[:, None, None]
        return Logits.of(torch.where(positive_B11, *(table(x_BL) for table in TABLES))[select_BL])


def method_with(network: nn.Module, **options) -> NoiseMDLM:
    method = NoiseMDLM(tiny_problem(V, L), NoiseMDLMOptions(noise=1, **options)).eval()
    method.network = network
    return method


def fresh_law(alphas: list[float]) -> np.ndarray:
    """Two steps: what the first leaves, by either table, is gone on with by either."""
    first, law = [], np.zeros(V**L)
    for table in TABLES:
        first.append(table.probabilities((V, V)))
    rate = alphas[1]
    for k, x in enumerate(all_sequences(V, L).tolist()):
        for p in first:
            law[k] += 0.5 * rate**2 * p[0, x[0]] * p[1, x[1]]
            for q_table in TABLES:
                q = q_table.probabilities((V, V))
                law[k] += 0.25 * (1 - rate) ** 2 * q[0, x[0]] * q[1, x[1]]
                law[k] += 0.25 * rate * (1 - rate) * p[0, x[0]] * q_table.probabilities((x[0], V))[1, x[1]]
                law[k] += 0.25 * rate * (1 - rate) * p[1, x[1]] * q_table.probabilities((V, x[1]))[0, x[0]]
    return law


@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_with_one_noise_for_a_sample_the_law_is_the_mixture_of_the_laws(nfe):
    alphas = np.linspace(0, 1, nfe + 1).tolist()
    law_X = 0.5 * sum(sampler_law(table, alphas, V, L) for table in TABLES)
    sampler = sampler_of(method_with(BySign()), Noise)
    assert chi_square_p(counts_of(sampler.draw(60_000, nfe, generator_of(1)).x_NL, V), law_X) > 1e-3
    x_XL, copies = all_sequences(V, L), 4000
    nll_CX = sampler.path_nll(x_XL.repeat(copies, 1), nfe, generator_of(2)).view(copies, -1)
    assert (-importance_nll(nll_CX)).exp().numpy() == pytest.approx(law_X, abs=0.01)


def test_fresh_noise_is_drawn_in_each_call():
    law_X, fixed_X = fresh_law([0.0, 0.5, 1.0]), 0.5 * sum(sampler_law(t, [0.0, 0.5, 1.0], V, L) for t in TABLES)
    assert law_X.sum() == pytest.approx(1.0)
    drawn = counts_of(sampler_of(method_with(BySign()), Noise, calls="fresh").draw(60_000, 2, generator_of(3)).x_NL, V)
    assert chi_square_p(drawn, law_X) > 1e-3 and chi_square_p(drawn, fixed_X) < 1e-3


def test_the_bound_is_the_mean_of_the_tables_bounds():
    x_XL = all_sequences(V, L)
    mean_X, se_X = bound_by_x(method_with(BySign()), x_XL, copies=400, repeats=20)
    each = [[nelbo_by_enumeration(table, tuple(x), V) for x in x_XL.tolist()] for table in TABLES]
    assert (np.abs(mean_X - np.mean(each, axis=0)) < 4 * se_X).all()
    law_X = 0.5 * sum(sampler_law(table, np.linspace(0, 1, 257).tolist(), V, L) for table in TABLES)
    assert (mean_X > -np.log(law_X) - 4 * se_X).all(), "and above -log p(x)"


def test_the_loss_of_noise_alone_is_that_of_the_mixture():
    """By hand: of two noises that are both of one sign half of the time, over all tokens and over each by itself."""
    p = [table.probabilities((V, V))[range(L), 0] for table in TABLES]
    both = [-np.log(np.prod(p[0])), -np.log(np.prod(p[1])), -np.log(np.prod(p, axis=1).mean())]
    each = [-np.log(p[0]).sum(), -np.log(p[1]).sum(), -np.log(np.mean(p, axis=0)).sum()]
    x_BL = torch.zeros((2, L), dtype=torch.int64)
    for window, nats in ((0, both), (1, (np.array(both) + each) / 2)):
        method = method_with(BySign(), full_mask=1.0, window=window)
        found = [float(method.loss(x_BL, generator_of(k)).total) for k in range(600)]
        assert np.mean(found) == pytest.approx(np.dot([0.25, 0.25, 0.5], nats) / L, abs=0.03)


def test_beside_shown_tokens_the_mixture_is_of_what_is_masked():
    log_p_MBL = torch.tensor([[[0.5, 0.2, 0.7]], [[0.1, 0.9, 0.7]]]).log()
    masked_BL = torch.tensor([[True, True, False]])
    whole = -np.log((0.5 * 0.2 + 0.1 * 0.9) / 2) / 2
    runs = -(np.log((0.5 * 0.2 + 0.1 * 0.9) / 2) + np.log((0.2 + 0.9) / 2)) / 3
    assert float(mixture_nats(log_p_MBL, masked_BL, 0)) == pytest.approx(whole)
    assert float(mixture_nats(log_p_MBL, masked_BL, 2)) == pytest.approx((whole + runs) / 2)
    assert float(mixture_nats(log_p_MBL, masked_BL, 0, nearest=True)) == pytest.approx(-np.log(0.5 * 0.2) / 2)


def test_one_call_goes_below_the_best_product():
    """Two texts with errors, 16 tokens: drawn apart, at the data's own frequencies, a sample loses 7.8 nats."""
    task = Templates(16, classes=2, symbols=4, accuracy=0.9)
    data_NL = torch.from_numpy(task.sample(4000, np.random.default_rng(0)).astype(np.int64))
    product_NL = torch.stack([x_N.roll(7 * i) for i, x_N in enumerate(data_NL.T)], dim=1)
    entropy = -float(task.log_prob(data_NL).mean())
    floor = -float(task.log_prob(product_NL).mean()) - entropy
    method = NoiseMDLM(tiny_problem(4, 16, width=32), NoiseMDLMOptions())
    optimizer = torch.optim.Adam(method.parameters(), lr=0.004)
    for step in range(100):
        method.set_stage("nearest" if step < 8 else "noise")
        x_BL = data_NL[torch.randint(len(data_NL), (32,), generator=generator_of(step))]
        optimizer.zero_grad()
        method.loss(x_BL, generator_of(step)).total.backward()
        optimizer.step()
    x_NL = sampler_of(method.eval(), Noise).draw(1000, 1, generator_of(0)).x_NL
    assert floor > 7 and -float(task.log_prob(x_NL).mean()) - entropy < 0.5 * floor
    share = (task.posterior(x_NL)[:, 0] > 0.5).double().mean()
    assert 0.3 < float(share) < 0.7, "and draws both"


def test_the_noise_comes_in_where_masks_are():
    method = NoiseMDLM(tiny_problem(V, 4), NoiseMDLMOptions())
    nn.init.normal_(method.network.head.weight)
    x_BL, other = torch.tensor([[0, 1, 2, 0]]), method.noise(1, generator_of(1))
    every = torch.ones_like(x_BL, dtype=torch.bool)
    shown = [method.network(x_BL, every, u).whole() for u in (other, -other)]
    masks = [method.network(torch.full_like(x_BL, V), every, u).whole() for u in (other, -other)]
    assert torch.equal(*shown) and not torch.allclose(*masks)
