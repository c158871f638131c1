"""Noisy embeddings, the mixture's posterior and the SEQ on both, on sequences few enough to be summed."""

import math

import numpy as np
import pytest
import torch

from harness.diffusion import masked
from harness.errors import UserError
from harness.nn import slices
from harness.study.memory import _Largest
from lddm.mixture import ProductMixture
from lddm.samplers.embedded import Embedded, EmbeddedOptions
from lddm.seq_embedded import SEQEmbedded, SEQEmbeddedOptions
from lddm.token_embedding import TokenEmbedding
from tests.kit.toys import (
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    scramble,
    tiny_problem,
)
from tests.lddm.test_laws_codes import mean_bound_and_entropy, mixture_law, rows

V, L, C, M = 3, 4, 2, 3
X = all_sequences(V, L)


def fitted(**options) -> SEQEmbedded:
    torch.manual_seed(0)
    sizes = {"segment": C, "patch": C, "codes": M, "em_steps": 30, "dims": 2}
    method = SEQEmbedded(tiny_problem(V, L), SEQEmbeddedOptions(**(sizes | options)))
    method.fit(rows(4000))
    return method.eval()


def law_of(method: SEQEmbedded) -> torch.Tensor:
    """The mixture's law of all sequences, (X,) float64."""
    return mixture_law(method.law, X.view(-1, C)).view(len(X), -1).prod(1)


# ---- the mixture's posterior ----------------------------------------------------------------------------------------
def by_definition(mixture: ProductMixture, evidence_NCV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """p(x_j | evidence) (N, C, V) and log p(evidence) (N,), by the sum over all segments, in float64."""
    all_YC = all_sequences(V, C)
    each_NYC = torch.stack([evidence_NCV[:, j, all_YC[:, j]].double() for j in range(C)], dim=-1)
    joint_NY = mixture_law(mixture, all_YC) * each_NYC.sum(-1).exp()
    one_hot_YCV = torch.nn.functional.one_hot(all_YC, V).double()
    return torch.einsum("ny,ycv->ncv", joint_NY / joint_NY.sum(1, keepdim=True), one_hot_YCV), joint_NY.sum(1).log()


def test_posterior_is_the_sum_over_all_segments():
    mixture = fitted().law
    evidence_NCV = torch.randn((50, C, V), generator=generator_of(1)) * 3.0
    evidence_NCV[:10, 0] = torch.nn.functional.one_hot(torch.arange(10) % V, V).float().log()
    log_p, log_N = mixture.posterior(evidence_NCV)
    p, total = by_definition(mixture, evidence_NCV)
    assert torch.allclose(log_p.double().exp(), p, atol=1e-5)
    assert torch.allclose(log_N.double(), total, atol=1e-4)


def test_posterior_of_a_long_segment_does_not_underflow():
    mixture = ProductMixture(5, 64, V)
    mixture.fit(np.random.default_rng(0).integers(V, size=(200, 64)), 3, 0.1)
    known = torch.nn.functional.one_hot(torch.zeros((2, 64), dtype=torch.int64), V).float().log()
    log_p, log_N = mixture.posterior(known)
    expected = torch.logsumexp(mixture.scores(torch.zeros((2, 64), dtype=torch.int64)), 1)
    assert torch.allclose(log_N, expected, rtol=1e-4) and torch.allclose(log_p[..., 0], torch.zeros(2, 64), atol=1e-5)


def test_drawn_segments_have_the_law_of_the_mixture():
    mixture = fitted().law
    law = mixture_law(mixture, all_sequences(V, C)).numpy()
    assert chi_square_p(counts_of(mixture.draw(40_000, generator_of(2)), V), law) > 1e-3


# ---- embeddings -----------------------------------------------------------------------------------------------------
def embedding_of_seven(dims: int = 4) -> tuple[TokenEmbedding, np.ndarray]:
    x_NL = np.random.default_rng(3).choice(7, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.04, 0.01], size=(2000, 8))
    embedding = TokenEmbedding(7, dims)
    embedding.fit(x_NL)
    return embedding, x_NL


def test_embeddings_have_one_length_and_like_symbols_are_near():
    rng = np.random.default_rng(4)
    vowel_NL = (
        rng.integers(2, size=(3000, 1)) + np.arange(8) % 2 * 2
    )  # 0 and 1 stand in even places, 2 and 3 in odd ones
    x_NL = np.where(np.arange(8) % 2, rng.integers(2, 4, size=(3000, 8)), rng.integers(2, size=vowel_NL.shape))
    embedding = TokenEmbedding(4, 3)
    embedding.fit(x_NL)
    e = embedding.embedding_VD
    assert torch.allclose(e.square().sum(1), torch.full((4,), 3.0), atol=1e-4)
    assert (e[0] - e[1]).norm() < (e[0] - e[2]).norm()


def test_a_time_is_the_share_of_the_unigram_entropy_that_its_noise_hides():
    embedding, x_NL = embedding_of_seven()
    x_BL = torch.from_numpy(x_NL[:600])
    prior_V = embedding.log_prior_V.double().exp()
    whole = -float((prior_V * prior_V.log()).sum())
    for t in (0.1, 0.3, 0.6, 0.9):
        t_B = torch.full((len(x_BL),), t, dtype=torch.float64)
        evidence = embedding.evidence(embedding.diffuse(x_BL, t_B, generator_of(5)), t_B).double()
        log_p = (evidence + prior_V.log()).log_softmax(-1)
        assert -float((log_p.exp() * log_p).sum(-1).mean()) / whole == pytest.approx(t, abs=0.02)


def test_times_and_noises_are_inverse():
    embedding, _ = embedding_of_seven()
    t = torch.linspace(0.02, 0.999, 50, dtype=torch.float64)
    assert torch.allclose(embedding.time_of(embedding.log_rho(t)), t, atol=1e-9)


def test_diffused_embeddings_and_their_evidence_by_hand():
    embedding, _ = embedding_of_seven()
    x_BL, t_B = torch.full((4000, 1), 2), torch.full((4000,), 0.5, dtype=torch.float64)
    z = embedding.diffuse(x_BL, t_B, generator_of(6))[:, 0]
    rho = float(embedding.log_rho(t_B[:1]).exp())
    assert torch.allclose(z.mean(0) * math.sqrt(1 + rho**2), embedding.embedding_VD[2], atol=6 * rho / 4000**0.5)
    assert float(z.var(0).mean()) == pytest.approx(rho**2 / (1 + rho**2), rel=0.05)
    y_V = z[0] * math.sqrt(1 + rho**2) - embedding.embedding_VD
    log_n_V = -0.5 * y_V.square().sum(1) / rho**2
    found_V = embedding.evidence(z[:1, None], t_B[:1])[0, 0]
    assert torch.allclose(found_V - found_V[0], log_n_V - log_n_V[0], atol=1e-3)


# ---- the method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", [1.0, 0.6, 0.3])
def test_bound_is_tight_where_the_networks_add_nothing(start):
    """Fresh networks leave the mixture as it is, whose posteriors are exact: the bound is -log p(x) itself."""
    method = fitted(start=start)
    mean_X, error_X = bound_by_x(method, X, copies=32, repeats=60)
    z_X = (mean_X + law_of(method).log().numpy()) / error_X
    assert np.abs(z_X).max() < 4.5, z_X
    assert np.sqrt(np.mean(z_X**2)) == pytest.approx(1.0, abs=0.4)


def test_bound_of_other_networks_is_above_the_best_law():
    """No law has a mean -log p below the entropy; a bound that leaves out a term would."""
    method = scramble(fitted(), std=0.2)
    total, entropy = mean_bound_and_entropy(method)
    assert total > entropy


@pytest.mark.parametrize(
    ("start", "nfe", "options", "held"),
    [
        (1.0, 33, EmbeddedOptions(latent_share=32 / 33), 1 << 26),
        (1.0, 33, EmbeddedOptions(latent_share=32 / 33, eta=1.0), 1 << 26),
        (0.7, 33, EmbeddedOptions(latent_share=32 / 33), 3000),
        (1.0, 1, EmbeddedOptions(latent_share=0.0), 3000),
    ],
)
def test_fresh_networks_sample_the_mixture(monkeypatch, start, nfe, options, held):
    """With exact denoisers, many steps and an end that hides next to nothing the law is the mixture's, from any start.

    Whether or not the numbers of all sequences and symbols are held at a time.
    """
    monkeypatch.setattr(slices, "HELD", held)
    method = fitted(start=start, end=0.02)
    drawn = Embedded(method, options).draw(3000, nfe, generator_of(8))
    assert drawn.nfe == nfe
    law = mixture_law(method.law, all_sequences(V, C)).numpy()
    assert chi_square_p(counts_of(drawn.x_NL.reshape(-1, C), V), law) > 1e-3


def test_no_tensor_of_a_draw_has_a_number_for_each_sequence_token_and_symbol(monkeypatch):
    """Two hundred symbols; a bound and samples are those of one piece."""
    torch.manual_seed(0)
    method = SEQEmbedded(tiny_problem(200, 8), SEQEmbeddedOptions(segment=4, patch=4, codes=5, em_steps=2, dims=2))
    method.fit(np.random.default_rng(0).integers(200, size=(500, 8)))
    scramble(method.eval(), std=0.1)
    sampler, found = Embedded(method, EmbeddedOptions()), []
    with torch.no_grad():
        for held in (1 << 26, 4 * 8 * 200):
            monkeypatch.setattr(slices, "HELD", held)
            monkeypatch.setattr(masked, "_AT_ONCE", 4 * 8 * 200)
            with _Largest() as seen:
                drawn = sampler.draw(64, 4, generator_of(1)).x_NL
            bound_B = method.bound(drawn, generator_of(2)).total_B
            found.append((drawn, bound_B, seen.bytes / (64 * 8 * 200 * 4)))
    assert found[0][2] >= 1 and found[1][2] < 0.2
    assert found[0][0].equal(found[1][0]) and torch.allclose(found[0][1], found[1][1], rtol=1e-5)


def test_another_start_is_no_law_of_the_bound():
    method = fitted()
    assert Embedded(method, EmbeddedOptions()).bounded
    assert not Embedded(method, EmbeddedOptions(start=0.6)).bounded


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"segment": 3}, "segment=3 does not divide sequences of 4 tokens; choose 2"),
        ({"patch": 8}, "patch=8 does not divide sequences of 4 tokens; choose 4"),
        ({"start": 0.2}, "start=0.2 is below end=0.3"),
        ({"prior_width": 3}, "prior_width=3 must be a multiple of 2 x heads"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words):
        fitted(**options)


def test_a_start_outside_of_what_was_learnt_is_refused():
    with pytest.raises(UserError, match="start=0.9 is not between the method's end=0.3 and its start=0.6"):
        Embedded(fitted(start=0.6), EmbeddedOptions(start=0.9))
