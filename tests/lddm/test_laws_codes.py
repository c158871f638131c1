"""The mixture of segments and the discrete SEQ on sequences few enough to be summed: EM, bound and the samplers' laws."""

import numpy as np
import pytest
import torch

from harness.errors import UserError
from lddm import mixture as mixture_file
from lddm.mixture import ProductMixture
from lddm.samplers.encoder import Encoder
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions
from tests.kit.toys import (
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    sampler_of,
    scramble,
    tiny_problem,
)

V, L, S, M = 3, 4, 2, 3
X = all_sequences(V, L)


def rows(n: int, seed: int = 0) -> np.ndarray:
    """(n, L) ids whose two halves are each a copied or a cycled symbol with some noise: dependent inside a segment."""
    rng = np.random.default_rng(seed)
    first = rng.integers(V, size=(n, S))
    second = np.where(rng.random((n, S)) < 0.85, (first + (first == 2)) % V, rng.integers(V, size=(n, S)))
    return np.stack((first, second), axis=2).reshape(n, L)


def fitted(seed: int = 0, **options) -> SEQDiscrete:
    torch.manual_seed(seed)
    method = SEQDiscrete(tiny_problem(V, L), SEQDiscreteOptions(**{"slots": S, "codes": M, "em_steps": 30} | options))
    method.fit(rows(4000))
    return method.eval()


def mixture_law(mixture: ProductMixture, x_NC: torch.Tensor) -> torch.Tensor:
    """p(x) by the definition, summed in float64: (N,)."""
    p_MCV = mixture.log_table_MF.double().exp().view(-1, mixture.segment, mixture.vocab_size)
    weight_M = mixture.log_weight_M.double().exp()
    each_MNC = torch.stack([p_MCV[:, j, x_NC[:, j]] for j in range(mixture.segment)], dim=-1)
    return weight_M @ each_MNC.prod(-1)


# ---- the mixture ----------------------------------------------------------------------------------------------------
def test_scores_are_the_joint_law_and_it_sums_to_1():
    mixture = fitted().mixture
    x_NC = all_sequences(V, 2)
    law_N = mixture_law(mixture, x_NC)
    assert float(law_N.sum()) == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(torch.logsumexp(mixture.scores(x_NC).double(), 1).exp(), law_N, atol=1e-6)


def test_em_never_loses_likelihood_and_reaches_the_law_of_the_data():
    x_NC = rows(4000).reshape(-1, 2)
    found = []
    for steps in (1, 2, 4, 8, 16, 60):
        mixture = ProductMixture(V * V, 2, V)
        found.append(mixture.fit(x_NC, steps, smoothing=1e-6))
    assert all(b >= a - 1e-5 for a, b in zip(found, found[1:], strict=False)), found
    counts = np.bincount(x_NC[:, 0] * V + x_NC[:, 1], minlength=V * V)
    share = counts / counts.sum()
    entropy = -(share * np.log(share)).sum()
    assert -found[-1] == pytest.approx(entropy, abs=0.01), "nine components can be any law of two symbols"
    independent = sum(-(p * np.log(p)).sum() for p in (share.reshape(V, V).sum(1), share.reshape(V, V).sum(0)))
    assert independent > entropy + 0.2, "the data must depend on each other for this to be a test"


def test_large_tables_are_read_by_gathers_and_say_the_same(monkeypatch):
    """Scores, EM and features (which stay as long as they were) of one-hot products and of gathers; each in slices too."""
    x_NC = rows(4000).reshape(-1, 2)
    plain, gathered = ProductMixture(M, 2, V), ProductMixture(M, 2, V)
    plain.fit(x_NC, 5, smoothing=0.5)
    monkeypatch.setattr(mixture_file, "_MOST_ENTRIES", 0)
    monkeypatch.setattr(mixture_file, "_SCORES", 7 * M)
    monkeypatch.setattr(gathered, "_one_hot", None)  # which nothing may call
    gathered.fit(x_NC, 5, smoothing=0.5)
    for name, value in plain.named_buffers():
        assert torch.allclose(value, gathered.get_buffer(name), atol=1e-4), name
    x_NC = all_sequences(V, 2)
    assert torch.allclose(plain.scores(x_NC), gathered.scores(x_NC), atol=1e-4)


def test_networks_of_codes_do_not_grow_with_the_vocabulary(monkeypatch):
    """Of a large table they see a sketch, under which components are as far from each other as they were."""
    monkeypatch.setattr(mixture_file, "_MOST_FEATURES", 256)
    mixture, whole = ProductMixture(40, 2, 3000), ProductMixture(40, 2, 3000)
    table_MF = torch.rand(40, 6000, generator=generator_of(1)) ** 8
    mixture._put(torch.ones(40), table_MF.clone())
    monkeypatch.setattr(whole, "feature_MK", torch.zeros(40, 6000))
    whole._put(torch.ones(40), table_MF)
    ratio = torch.pdist(mixture.feature_MK) / (torch.pdist(whole.feature_MK) * (256 / 6000) ** 0.5)
    assert 0.97 < float(ratio.mean()) < 1.03 and 0.7 < float(ratio.min()) <= float(ratio.max()) < 1.3
    count = [
        sum(p.numel() for name, p in method.named_parameters() if ".code_" in name)
        for method in (SEQDiscrete(tiny_problem(v, 4), SEQDiscreteOptions(slots=2, codes=3)) for v in (500, 5000))
    ]
    assert count[0] == count[1]


def test_more_components_than_distinct_segments_and_symbols_that_never_occur():
    mixture = ProductMixture(50, 2, V + 1)
    mixture.fit(np.array([[0, 1], [0, 1], [2, 2]]), 5, smoothing=0.1)
    assert torch.isfinite(mixture.scores(torch.tensor([[3, 3], [0, 1]]))).all()
    assert mixture_law(mixture, all_sequences(V + 1, 2)).sum() == pytest.approx(1.0, abs=1e-5)


# ---- bound ----------------------------------------------------------------------------------------------------------
def test_bound_is_tight_where_the_networks_add_nothing():
    """Fresh networks leave the mixture as it is, and its posterior is exact: the bound is -log p(x) itself."""
    method = fitted()
    law_X = mixture_law(method.mixture, X.view(-1, 2)).view(-1, S).prod(1)
    mean_X, error_X = bound_by_x(method, X, copies=8, repeats=60)
    z_X = (mean_X + law_X.log().numpy()) / error_X
    assert np.abs(z_X).max() < 4.5, z_X
    assert np.sqrt(np.mean(z_X**2)) == pytest.approx(1.0, abs=0.4)


@torch.no_grad()
def mean_bound_and_entropy(method) -> tuple[float, float]:
    """The mean bound of rows that it has not seen, and their entropy, nats per sequence."""
    x_NL = torch.from_numpy(rows(3000, seed=5))
    counts = counts_of(x_NL, V)
    share = counts[counts > 0] / counts.sum()
    bounds = [float(method.bound(x_NL, generator_of(r)).total_B.mean()) for r in range(10)]
    return float(np.mean(bounds)), float(-(share * np.log(share)).sum())


def test_bound_of_trained_networks_is_above_the_best_law():
    """No law has a mean -log p below the entropy; a bound that leaves out a term would."""
    total, entropy = mean_bound_and_entropy(scramble(fitted(), std=0.2))
    assert total > entropy


# ---- samplers -------------------------------------------------------------------------------------------------------
def code_sequences() -> torch.Tensor:
    return all_sequences(M, S)


@torch.no_grad()
def two_call_law(method: SEQDiscrete) -> np.ndarray:
    """Law of one code call and one token call over all sequences, by summing over all codes, (X,)."""
    c_YS = code_sequences()
    blank_1S, all_1S = torch.full((1, S), M), torch.ones((1, S), dtype=torch.bool)
    log_p_SM = method.prior(blank_1S, method.mixture, all_1S).whole().double().log_softmax(-1)
    log_c_Y = sum(log_p_SM[s, c_YS[:, s]] for s in range(S))
    x_YL, all_YL = torch.full((len(c_YS), L), V), torch.ones((len(c_YS), L), dtype=torch.bool)
    log_x_YLV = (
        method.decoder(x_YL, c_YS, method.mixture, all_YL).whole().double().log_softmax(-1).view(len(c_YS), L, V)
    )
    log_x_YX = sum(log_x_YLV[:, i, X[:, i]] for i in range(L))
    return (log_c_Y[:, None] + log_x_YX).exp().sum(0).numpy()


def test_two_calls_have_the_law_of_their_definition():
    method = scramble(fitted(), std=0.08)
    drawn = sampler_of(method).draw(60_000, 2, generator_of(3))
    assert (drawn.nfe_latent, drawn.nfe_token) == (1, 1)
    assert chi_square_p(counts_of(drawn.x_NL, V), two_call_law(method)) > 1e-3


@pytest.mark.parametrize("nfe", [2, 5])
def test_fresh_networks_sample_the_mixture_at_every_budget(nfe):
    method = fitted()
    law_X = mixture_law(method.mixture, X.view(-1, 2)).view(-1, S).prod(1).numpy()
    assert chi_square_p(counts_of(sampler_of(method).draw(40_000, nfe, generator_of(nfe)).x_NL, V), law_X) > 1e-3


def test_one_code_keeps_the_weights_that_em_gave_it():
    """Nothing else is known when it is drawn: a trained prior of one slot gave binsaw twelve times the data's distance."""
    method = fitted(slots=1, codes=5)
    assert [stage.name for stage in method.stages()] == ["tokens"]
    method.set_stage("tokens")
    assert not any(p.requires_grad for p in method.prior.parameters())
    law_X = mixture_law(method.mixture, X).numpy()
    assert chi_square_p(counts_of(sampler_of(method).draw(60_000, 2, generator_of(7)).x_NL, V), law_X) > 1e-3


def test_given_codes_have_the_law_of_the_posterior_and_cost_no_call():
    method = fitted(bank=4000)
    x_NL = torch.from_numpy(rows(4000))
    method.calibrate(x_NL)
    post_NSM = method._posterior(x_NL).double().exp()
    expected_M = post_NSM.sum((0, 1)).numpy()
    counts = torch.bincount(method.bank.code_MS.flatten(), minlength=M).numpy()
    assert np.abs(counts - expected_M).max() < 4 * np.sqrt(expected_M.max())
    drawn = sampler_of(method, Encoder).draw(10, 3, generator_of(0))
    assert (drawn.nfe_latent, drawn.nfe_token) == (0, 3)


# ---- bad input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slots": 3}, ("slots=3", "4 tokens", "choose 2")),
        ({"slots": 1, "codes": 1 << 20}, None),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, words):
    problem = tiny_problem(V, L) if words else tiny_problem(4096, 4)
    with pytest.raises(UserError) as caught:
        SEQDiscrete(problem, SEQDiscreteOptions(**options))
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words or ("codes=1048576", "choose 32768 or fewer"))


def test_a_fit_reads_no_more_segments_than_it_is_allowed(monkeypatch):
    seen = []
    monkeypatch.setattr(ProductMixture, "fit", lambda self, x_NC, steps, smoothing: seen.append(x_NC))
    for most in (100, 8000):
        SEQDiscrete(tiny_problem(V, L), SEQDiscreteOptions(slots=S, codes=M, em_segments=most)).fit(rows(4000))
    assert [x_NC.shape for x_NC in seen] == [(100, 2), (8000, 2)]
