"""Codes that gradients learn, where the true ones are known; their bound, and how VQ keeps its vectors in use."""

import numpy as np
import pytest
import torch

from harness.errors import UserError
from lddm.learned_codes import VQCodes, VQOptions
from lddm.seq_learned import SEQVQ, SEQGumbel, SEQLearned
from tests.kit.toys import (
    all_sequences,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    sampler_of,
    scramble,
    tiny_problem,
)

V, L, RIGHT = 2, 6, 0.9
X = all_sequences(V, L)
#: Two texts, each half of the time, and each token right with a chance: the code to be found is which text.
TEXTS = torch.tensor([[0, 0, 1, 0, 1, 1], [1, 1, 0, 1, 0, 0]])


def joint() -> torch.Tensor:
    """p(x, text) of all sequences, (X, 2)."""
    right_XT = (X[:, None] == TEXTS).sum(-1)
    return 0.5 * RIGHT**right_XT * (1 - RIGHT) ** (L - right_XT)


def law() -> torch.Tensor:
    """p(x), (X,)."""
    return joint().sum(1)


def rows(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, L) tokens and which text they are of, (n,)."""
    which_n = torch.randint(2, (n,), generator=generator_of(seed))
    wrong_nL = torch.rand((n, L), generator=generator_of(seed + 1)) > RIGHT
    return TEXTS[which_n] ^ wrong_nL.long(), which_n


def trained(cls: type[SEQLearned], steps: int, **options) -> SEQLearned:
    torch.manual_seed(0)
    method = cls(tiny_problem(V, L), cls.Options(**{"slots": 1, "codes": 2, "dims": 4} | options))
    x_NL, _ = rows(2000, seed=5)
    method.fit(x_NL.numpy())
    method.train().set_stage("tokens")
    free = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(free, lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        method.progress = step / steps
        method.loss(x_NL[64 * step % 1984 :][:64], generator_of(step)).total.backward()
        optimizer.step()
    method.calibrate(x_NL)
    return method.eval()


def in_common(joint_AB: torch.Tensor) -> float:
    """I(A; B), nats."""
    entr = torch.special.entr
    return float(entr(joint_AB.sum(0)).sum() + entr(joint_AB.sum(1)).sum() - entr(joint_AB).sum())


@pytest.mark.parametrize(("cls", "share"), [(SEQVQ, 0.75), (SEQGumbel, 0.6)])
@torch.no_grad()
def test_the_code_is_found_and_two_calls_are_near_the_law_of_the_data(cls, share):
    """Nats that the code shares with the text, and what it saves a token step, of what the text itself would."""
    with torch.enable_grad():
        method = trained(cls, steps=200)
    x_NL, which_N = rows(2000, seed=9)
    c_N = method.encode(x_NL, generator_of(0))[0][:, 0]
    counts = (2 * c_N + which_N).bincount(minlength=4).view(2, 2) / len(c_N)
    assert in_common(counts) > share * in_common(joint()), in_common(counts)
    found = method.diagnose(x_NL, generator_of(1))
    assert found["latent_codes_in_use"] == 2 and 1.8 < found["latent_perplexity_of_codes"] <= 2.0
    token = torch.tensor([[RIGHT, 1 - RIGHT], [1 - RIGHT, RIGHT]]) / 2
    assert found["latent_nats_saved"] > share * L * in_common(token)
    drawn = sampler_of(method).draw(20_000, 2, generator_of(2)).x_NL
    far = np.abs(counts_of(drawn, V) / 20_000 - law().numpy()).sum() / 2
    assert far < 0.25, "independent tokens are uniform, .68 away"
    bound = np.mean([float(method.bound(x_NL, generator_of(r)).total_B.mean()) for r in range(5)])
    assert bound > float(torch.special.entr(law()).sum()) - 0.05


def test_vq_starts_again_from_k_means_after_its_warm_up():
    """Until then gradients see vectors that nothing has rounded, and the vectors of the codes do not move."""
    method = SEQVQ(tiny_problem(V, L), VQOptions(slots=2, codes=3, dims=4, warmup=0.5))
    method.fit(rows(500)[0].numpy())
    method.train().set_stage("tokens")
    codes, before = method.mixture, method.mixture.feature_MK.clone()
    for progress in (0.0, 0.4):
        method.progress = progress
        method.loss(rows(32)[0], generator_of(0))
    assert torch.equal(codes.feature_MK, before) and codes.recent.filled == 64
    method.progress = 0.5
    method.loss(rows(32)[0], generator_of(1))
    assert not torch.equal(codes.feature_MK, before) and codes.recent.filled == 0
    code_BSK, *_ = codes.learn(rows(32)[0], generator_of(2), 0.6)
    assert all(float((codes.feature_MK - v_K).abs().sum(1).min()) < 0.6 for v_K in code_BSK.detach().flatten(0, 1))


@pytest.mark.parametrize("cls", [SEQVQ, SEQGumbel])
@torch.no_grad()
def test_the_bound_is_above_the_law_of_what_is_drawn(cls):
    """Weights by chance, two slots, summed over all codes: E_q[log q - log p(c) - log p(x | c)] in one token step."""
    torch.manual_seed(0)
    method = cls(tiny_problem(V, L), cls.Options(slots=2, codes=3, dims=4))
    method.fit(rows(500)[0].numpy())
    scramble(method, std=0.2).calibrate(rows(500)[0])
    method.eval()
    c_YS = all_sequences(3, 2)
    log_p_SM = method.prior(torch.full((1, 2), 3), method.mixture, torch.ones((1, 2), dtype=torch.bool)).whole()
    log_c_Y = sum(log_p_SM.double().log_softmax(-1)[s, c_YS[:, s]] for s in range(2))
    blank_YL = torch.full((len(c_YS), L), V)
    log_x_YLV = method.decoder(blank_YL, c_YS, method.mixture, blank_YL == V).whole().double().log_softmax(-1)
    log_x_YX = sum(log_x_YLV.view(-1, L, V)[:, i, X[:, i]] for i in range(L))
    law_X = (log_c_Y[:, None] + log_x_YX).exp().sum(0)
    assert float(law_X.sum()) == pytest.approx(1.0)
    drawn = sampler_of(method).draw(40_000, 2, generator_of(3)).x_NL
    assert chi_square_p(counts_of(drawn, V), law_X.numpy()) > 1e-3
    c_XS, log_q_X = method.encode(X.repeat(200, 1), generator_of(4))
    at_X = c_XS[:, 0] * 3 + c_XS[:, 1]
    nats_X = (log_q_X - log_c_Y[at_X] - log_x_YX[at_X, torch.arange(len(X)).repeat(200)]).view(200, -1).mean(0)
    assert (nats_X >= -law_X.log() - 0.1).all()
    if cls is SEQVQ:
        assert (log_q_X == 0).all() and torch.equal(c_XS[: len(X)], c_XS[len(X) : 2 * len(X)])


def test_unused_vectors_start_again_and_used_ones_move_to_the_mean_of_what_they_stand_for():
    codes = VQCodes(tiny_problem(V, L), VQOptions(slots=1, codes=3, dims=2), L).train()
    codes.feature_MK.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [50.0, 50.0]]))
    codes.sum_MK.copy_(codes.feature_MK / 3)
    z_NK = torch.tensor([[1.5, 0.5], [1.5, -0.5], [-2.0, 0.0], [-2.0, 0.2]])
    for step in range(400):
        codes._follow(z_NK, codes.nearest(z_NK), generator_of(step))
    assert float((codes.feature_MK[2] - 50.0).abs().max()) > 40.0, "it stood for nothing"
    found = torch.cdist(z_NK, codes.feature_MK).amin(1)
    assert float(found.max()) < 0.6
    frozen = codes.eval().feature_MK.clone()
    codes._follow(z_NK + 3.0, codes.nearest(z_NK), generator_of(0))
    assert torch.equal(codes.feature_MK, frozen), "what only measures changes nothing"


def test_k_means_starts_at_the_clusters_of_the_encoder():
    """Of 2000 sequences of two texts: vectors are means of the segments that are nearest to them."""
    torch.manual_seed(0)
    method = SEQVQ(tiny_problem(V, L), VQOptions(slots=1, codes=4, dims=3))
    z_NK = method.mixture.start(rows(2000)[0].numpy()).flatten(0, 1)
    c_N = method.mixture.nearest(z_NK)
    for code in c_N.unique():
        mean_K = z_NK[c_N == code].mean(0)
        assert torch.allclose(mean_K, method.mixture.feature_MK[code], atol=0.15)
    assert torch.allclose(method.mixture.log_law_CV.exp()[:, 1], rows(2000)[0].float().mean(0), atol=1e-3)


def test_what_learned_codes_cannot_do_is_said():
    method = SEQVQ(tiny_problem(V, L), VQOptions(slots=2, codes=3))
    assert not sampler_of(method).fills
    with pytest.raises(UserError, match="slots=4 does not divide sequences of 6 tokens; choose 3"):
        SEQVQ(tiny_problem(V, L), VQOptions(slots=4))
