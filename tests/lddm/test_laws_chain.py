"""The Markov chain: its law, its posterior and its draws against sums over all sequences, and the SEQ that begins at it."""

import numpy as np
import pytest
import torch

from baselines.ngram import NGram, NGramOptions
from harness.errors import UserError
from harness.nn.markov_chain import MarkovChain
from lddm.samplers.embedded import Embedded, EmbeddedOptions
from lddm.samplers.embedded_chain import EmbeddedChain, EmbeddedChainOptions
from lddm.seq_embedded import SEQEmbedded
from tests.kit.toys import (
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    tiny_problem,
)
from tests.lddm.test_laws_codes import rows
from tests.lddm.test_laws_embedded import L, V, X, fitted


def chain_of(order: int) -> MarkovChain:
    chain = MarkovChain(order, L, V)
    chain.fit(rows(300))
    return chain


def law_of(chain: MarkovChain) -> torch.Tensor:
    """p of all sequences, (X,) float64, by the definition of a chain."""
    n = chain.order
    table = chain.table_RAD.double().transpose(0, 1).reshape(*[V] * n)
    p_X = chain.start_AR.double().reshape(*[V] * (n - 1))[tuple(X[:, : n - 1].T)]
    for i in range(n - 1, L):
        p_X = p_X * table[tuple(X[:, i - n + 1 : i + 1].T)]
    return p_X


def same_law(x_NL: torch.Tensor, law_X: torch.Tensor) -> bool:
    """By chi-square, with all sequences that are too rare for it as one."""
    counts_X, p_X = counts_of(x_NL, V), (law_X / law_X.sum()).numpy()
    rare_X = p_X * len(x_NL) < 10
    counts = np.append(counts_X[~rare_X], counts_X[rare_X].sum())
    return chi_square_p(counts, np.append(p_X[~rare_X], p_X[rare_X].sum())) > 1e-3


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_law_is_that_of_the_counted_baseline(order):
    """And it sums to one: every window of the data is a sequence that could begin there."""
    baseline = NGram(tiny_problem(V, L), NGramOptions(order=order))
    baseline.fit(rows(300))
    p_X = law_of(chain_of(order))
    assert float(p_X.sum()) == pytest.approx(1.0, abs=1e-5)
    nats_X = baseline.bound(X, generator_of(0)).total_B
    assert torch.allclose(-p_X.log(), nats_X, atol=1e-5)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_posterior_is_the_sum_over_all_sequences(order):
    chain = chain_of(order)
    evidence_NLV = torch.randn((40, L, V), generator=generator_of(1)) * 3.0
    evidence_NLV[:9, 1] = torch.nn.functional.one_hot(torch.arange(9) % V, V).float().log()
    log_p, log_N = chain.posterior(evidence_NLV)
    each_NX = sum(evidence_NLV[:, i].double()[:, X[:, i]] for i in range(L))
    joint_NX = law_of(chain) * each_NX.exp()
    p_NLV = torch.einsum("nx,xlv->nlv", joint_NX, torch.nn.functional.one_hot(X, V).double())
    assert torch.allclose(log_p.double().exp(), p_NLV / joint_NX.sum(1)[:, None, None], atol=1e-5)
    assert torch.allclose(log_N.double(), joint_NX.sum(1).log(), atol=1e-4)


def test_posterior_is_the_same_in_blocks(monkeypatch):
    chain, evidence_NLV = chain_of(3), torch.randn((7, L, V), generator=generator_of(2))
    whole = chain.posterior(evidence_NLV)
    monkeypatch.setattr("harness.nn.markov_chain._KEPT_NUMBERS", 2 * L * V * V)
    for a, b in zip(whole, chain.posterior(evidence_NLV), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_sequences_are_drawn_together_given_evidence(order):
    """By chi-square against the joint law; and the two sums that go with it."""
    chain = chain_of(order)
    evidence_LV = torch.randn((L, V), generator=generator_of(4)) * 1.5
    evidence_LV[2] = torch.tensor([-torch.inf, 0.0, -torch.inf])
    log_joint_X = law_of(chain).log() + sum(evidence_LV[i].double()[X[:, i]] for i in range(L))
    drawn_NL = chain.draw_given(evidence_LV.expand(40_000, L, V), generator_of(5))
    assert (drawn_NL[:, 2] == 1).all()
    assert same_law(drawn_NL, log_joint_X.exp())
    assert torch.allclose(chain.log_p(X), law_of(chain).log(), atol=1e-5)
    total = chain.evidence_log_p(evidence_LV[None]).double()
    assert torch.allclose(total, log_joint_X.logsumexp(0)[None], atol=1e-4)
    assert torch.allclose(total, chain.posterior(evidence_LV[None])[1].double(), atol=1e-5)


def test_a_long_sequence_does_not_underflow():
    chain = MarkovChain(3, 400, V)
    chain.fit(np.random.default_rng(0).choice(V, p=[0.98, 0.01, 0.01], size=(50, 400)))
    known = torch.nn.functional.one_hot(torch.full((1, 400), 2), V).float().log()
    log_p, log_N = chain.posterior(known)
    assert torch.isfinite(log_N).all() and float(log_N) < -1000
    assert torch.allclose(log_p[..., 2], torch.zeros(1, 400), atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_draws_have_the_law(order):
    chain = chain_of(order)
    assert same_law(chain.draw(40_000, generator_of(3)), law_of(chain))


@pytest.mark.parametrize("joint", [False, True])
def test_bound_of_the_seq_is_tight_where_the_networks_add_nothing(joint):
    method = fitted(law="chain", order=3, start=0.6, joint=joint)
    mean_X, error_X = bound_by_x(method, X, copies=32, repeats=60)
    z_X = (mean_X + law_of(method.law).log().numpy()) / error_X
    assert np.abs(z_X).max() < 4.5, z_X
    assert np.sqrt(np.mean(z_X**2)) == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize(("start", "share", "nfe"), [(0.7, 32 / 33, 33), (1.0, 0.0, 1)])
def test_fresh_networks_sample_the_chain(start, share, nfe):
    method = fitted(law="chain", order=2, start=start, end=0.02)
    drawn = Embedded(method, EmbeddedOptions(latent_share=share)).draw(6000, nfe, generator_of(8))
    assert same_law(drawn.x_NL, law_of(method.law))


@pytest.mark.parametrize(("start", "share", "nfe"), [(0.9, 0.5, 2), (0.9, 0.5, 6), (1.0, 0.5, 4), (0.9, 0.0, 1)])
def test_drawn_together_fresh_networks_sample_the_chain_in_any_number_of_calls(start, share, nfe):
    method = fitted(law="chain", order=2, start=start, end=0.6)
    sampler = EmbeddedChain(method, EmbeddedChainOptions(latent_share=share))
    assert same_law(sampler.draw(20_000, nfe, generator_of(8)).x_NL, law_of(method.law))
    if nfe == 2:
        apart = Embedded(method, EmbeddedOptions(latent_share=share))
        assert not same_law(apart.draw(20_000, nfe, generator_of(8)).x_NL, law_of(method.law))


def test_what_a_network_adds_is_beside_the_chain():
    """Given a latent one call draws from chain(x) N(z | x) exp(what the decoder adds), by enumeration."""
    method = fitted(law="chain", order=2, start=0.9, end=0.6)
    torch.nn.init.normal_(method.decoder.head.weight, generator=generator_of(1))
    sampler = EmbeddedChain(method, EmbeddedChainOptions(latent_share=0.0))
    z_1LD = method.draw_start(1, 0.6, generator_of(2))
    sampler.latents = lambda n, *_: z_1LD.expand(n, -1, -1)
    blank_1L, t_1 = torch.full((1, L), V), torch.tensor([0.6], dtype=torch.float64)
    with torch.no_grad():
        drawn = sampler.draw(20_000, 1, generator_of(3))
        seen_LV = method.embedding.evidence(z_1LD, t_1)[0]
        added_LV = method.denoiser(z_1LD)(blank_1L, blank_1L == V, t_1).whole() - method._base(seen_LV[None])[0][0]
    assert float(added_LV.std(1).min()) > 0.1
    weight_X = sum((seen_LV + added_LV)[i].double()[X[:, i]] for i in range(L))
    assert same_law(drawn.x_NL, (law_of(method.law).log() + weight_X).softmax(0))


def opinionated(**options) -> SEQEmbedded:
    """Networks that add something to the chain, and have learnt nothing."""
    method = fitted(law="chain", order=2, start=0.9, end=0.6, joint=True, **options)
    for weight in (method.decoder.head.weight, method.prior.token_out.weight):
        torch.nn.init.normal_(weight, generator=generator_of(1))
    return method


def log_joint(method: SEQEmbedded, potentials_LV: torch.Tensor) -> torch.Tensor:
    """log p(x | potentials), (X,) float64, by its definition."""
    own_X = sum(potentials_LV[i].double()[X[:, i]] for i in range(L))
    return (method.law.log_p(X) + own_X).log_softmax(0)


@pytest.mark.parametrize("stage", ["tokens", "prior"])
def test_the_loss_of_networks_that_learn_together_is_the_joint_likelihood(stage, monkeypatch):
    """And its gradient, by enumeration, of the potentials that the loss itself has made."""
    method = opinionated(latent_batch=5)
    method.set_stage(stage)
    name, learnt = ("token", method.decoder.head) if stage == "tokens" else ("latent", method.prior.token_out)
    made, plain = [], getattr(method, f"{name}_potentials")
    monkeypatch.setattr(method, f"{name}_potentials", lambda *given: made.append(plain(*given)) or made[0])
    loss = method.loss(X[[3, 3, 5, 9, 20]], generator_of(4))
    loss.total.backward(retain_graph=True)
    found = learnt.weight.grad.clone()
    x_BL = X[[3, 3, 5, 9, 20]] if stage == "tokens" else method.bank.draw(5, generator_of(4))
    open_BL = made[0].detach().exp().gt(0).sum(-1) > 1  # a token that is shown is certain
    index_B = [int((x_L == X).all(1).nonzero()[0, 0]) for x_L in x_BL]
    nll = -sum(log_joint(method, made[0][b])[index_B[b]] for b in range(5)) / open_BL.sum()
    method.zero_grad()
    nll.backward()
    assert float(loss.total.detach()) == pytest.approx(float(nll.detach()), abs=1e-4)
    assert torch.allclose(found, learnt.weight.grad, atol=1e-5) and found.abs().max() > 0.01


def test_each_token_by_itself_is_the_joint_law_summed():
    method = opinionated()
    z_1LD, t_1 = method.draw_start(1, 0.6, generator_of(2)), torch.tensor([0.6], dtype=torch.float64)
    shown_1L = torch.full((1, L), V)
    shown_1L[0, 1] = 2
    with torch.no_grad():
        for potentials_1LV, log_p_LV in (
            (method.latent_potentials(z_1LD, t_1), method.log_p(z_1LD, t_1)[0]),
            (method.token_potentials(shown_1L, z_1LD), method.denoiser(z_1LD)(shown_1L, shown_1L >= 0, t_1).whole()),
        ):
            p_X = log_joint(method, potentials_1LV[0]).exp()
            expected_LV = torch.stack([torch.stack([p_X[X[:, i] == v].sum() for v in range(V)]) for i in range(L)])
            assert torch.allclose(log_p_LV.double().exp(), expected_LV, atol=1e-5)


def test_to_learn_together_takes_a_chain():
    with pytest.raises(UserError, match="joint=true needs n-grams .* law=mixture has none; use law=chain"):
        fitted(joint=True)


def test_without_a_chain_nothing_is_drawn_together():
    with pytest.raises(UserError, match="law=mixture has none; use law=chain or sampler embedded"):
        EmbeddedChain(fitted(), EmbeddedChainOptions())


def test_a_table_that_is_too_large_is_refused_in_one_line():
    with pytest.raises(
        UserError, match="order=3: a chain over 1024 symbols and 64 tokens .* use order=2 or law=mixture"
    ):
        MarkovChain(3, 64, 1024)
