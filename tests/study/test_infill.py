"""Filling in beside given tokens: laws by enumeration, what is kept, what is scored, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines.autoregressive import Autoregressive
from baselines.mdlm import MDLM, MDLMOptions
from harness.contracts.metric import TinyJudge
from harness.diffusion import ancestral
from harness.errors import UserError
from harness.metrics.base import Prompts, Samples, ScoreContext
from harness.metrics.infill import Infill
from harness.study.cells import Part
from harness.study.check import _check_prompts
from harness.study.sampling import SamplerError, checked_draw, draw_samples
from harness.training.precision import Numerics
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions
from tests.kit.toys import (
    all_sequences,
    chi_square_p,
    counts_of,
    exact_table,
    generator_of,
    index_of,
    one_thread,  # noqa: F401
    random_joint,
    sampler_of,
    scramble,
    tiny_problem,
)

V, L = 3, 3
JOINT_X = random_joint(V, L, seed=1, spread=1.5)


def conditional(law_X: np.ndarray, x_L: torch.Tensor, hidden_L: torch.Tensor) -> np.ndarray:
    """The law of all tokens given those that are shown, by enumeration, (X,)."""
    same_X = (all_sequences(V, len(x_L))[:, ~hidden_L] == x_L[~hidden_L]).all(1).numpy()
    return law_X * same_X / (law_X * same_X).sum()


def exact_mdlm():
    method = MDLM(tiny_problem(V, L), MDLMOptions()).eval()
    method.network = exact_table(JOINT_X, V, L)
    return sampler_of(method), method.network


@pytest.mark.parametrize("hidden", [(False, True, False), (True, True, False), (True, False, True)])
def test_exact_conditionals_fill_in_the_conditional_law(hidden):
    """In one call tokens are drawn apart, each by its own conditional; in many together."""
    sampler, table = exact_mdlm()
    x_L, hidden_L = torch.tensor([1, 0, 2]), torch.tensor(hidden)
    x_NL, hidden_NL = x_L.expand(30_000, -1), hidden_L.expand(30_000, -1)
    law_X = conditional(JOINT_X, x_L, hidden_L)
    p_LV = table.probabilities(tuple(V if h else int(x) for x, h in zip(x_L, hidden, strict=True)))
    shown_LV = np.where(hidden_L[:, None], p_LV, np.eye(V)[x_L])
    apart_X = np.prod([shown_LV[i, all_sequences(V, L)[:, i]] for i in range(L)], axis=0)
    for nfe, expected_X in ((1, apart_X), (96, law_X)):
        drawn = sampler.fill(x_NL, hidden_NL, nfe, generator_of(nfe))
        assert drawn.nfe == nfe and chi_square_p(counts_of(drawn.x_NL, V), expected_X) > 1e-3
    if sum(hidden) == 2:
        assert np.abs(apart_X - law_X).max() > 0.03, "or the two could not be told apart"


def test_nothing_given_is_a_draw_to_the_bit():
    sampler, _ = exact_mdlm()
    blank_NL = ancestral.blank(50, L, V, torch.device("cpu"))
    filled = sampler.fill(blank_NL, blank_NL == V, 2, generator_of(3)).x_NL
    assert torch.equal(filled, sampler.draw(50, 2, generator_of(3)).x_NL)


@pytest.mark.parametrize("nfe", [2, 5])
def test_codes_are_drawn_given_what_is_shown(nfe):
    """Fresh networks are the mixture, whose conditional law is known: with codes blind to what is given it would be another."""
    length = 4
    method = SEQDiscrete(
        tiny_problem(V, length), SEQDiscreteOptions(slots=2, codes=3, em_steps=20, smoothing=30.0)
    ).eval()
    rng = np.random.default_rng(0)
    first = rng.integers(V, size=(3000, 2, 1))
    second = np.where(rng.random(first.shape) < 0.7, first, rng.integers(V, size=first.shape))
    method.fit(np.concatenate((first, second), axis=2).reshape(-1, length))
    x_XL = all_sequences(V, length)
    law_X = torch.logsumexp(method.mixture.scores(x_XL.view(-1, 2)), 1).view(-1, 2).sum(1).exp().double().numpy()
    x_L, hidden_L = torch.tensor([2, 0, 1, 1]), torch.tensor([False, True, True, True])
    expected_X, blind_X = conditional(law_X, x_L, hidden_L), law_X.reshape(V, -1).sum(0) / law_X.sum()
    drawn = sampler_of(method).fill(x_L.expand(40_000, -1), hidden_L.expand(40_000, -1), nfe, generator_of(nfe))
    assert chi_square_p(counts_of(drawn.x_NL, V), expected_X) > 1e-3
    assert np.abs(expected_X.reshape(V, -1)[2] - blind_X).max() > 0.1
    assert index_of(drawn.x_NL[:, :1], V).unique().tolist() == [2]


# ---- in a study -----------------------------------------------------------------------------------------------------
def test_each_sequence_is_given_its_own_tokens_in_chunks_too():
    sampler, _ = exact_mdlm()
    x_NL = np.random.default_rng(2).integers(V, size=(10, L))
    hidden_NL = np.random.default_rng(3).random((10, L)) < 0.5
    drawn = draw_samples(
        sampler, Part(2, 1.0), 10, 4, (1, 0), Numerics("cpu", "float32"), lambda done, total: None,
        Prompts([""] * 10, x_NL, hidden_NL),
    )  # fmt: skip
    assert np.array_equal(drawn.x_NL[~hidden_NL], x_NL[~hidden_NL])
    assert not np.array_equal(drawn.x_NL, x_NL)
    fill = sampler.fill
    sampler.fill = lambda x_NL, hidden_NL, *rest: fill(x_NL, hidden_NL | True, *rest)
    with pytest.raises(SamplerError, match="changed tokens that it was given"):
        checked_draw(sampler, 40, Part(1, 1.0), generator_of(0), (torch.zeros(40, L).long(), torch.zeros(40, L) > 0))


def test_the_score_is_the_difference_of_conditional_nats():
    """Of one text the given tokens cost the same whatever stands beside them: -log p(all) differs by what is hidden."""
    x_NL, hidden_NL = np.array([[0, 1, 2], [1, 1, 1]]), np.array([[False, True, True], [False, False, True]])
    own, filled = ["abc", "bbb"], ["aba", "bbb"]
    context = ScoreContext(None, None, TinyJudge(None), None, 0, Prompts(own, x_NL, hidden_NL))
    scores = Infill(None).score(Samples(np.array([[0, 1, 0], [1, 1, 1]]), filled), context)
    judge = TinyJudge(None)
    nats = (judge.score(filled[:1]).nll_N[0] - judge.score(own[:1]).nll_N[0]) / 2
    assert scores.values["fill_nats"][0] == pytest.approx(nats / 2) and nats != 0
    assert scores.values["fill_matches"][0] == pytest.approx((0.5 + 1.0) / 2)
    assert scores.values["fill_exact"][0] == 0.5
    same = Infill(None).score(Samples(x_NL, own), context).values
    assert (same["fill_nats"][0], same["fill_exact"][0]) == (0.0, 1.0), "held-out text fills in itself"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("half", "study.prompt=half: ar/own cannot hold given tokens fixed; use only=.mdlm/own."),
        ("none", "metric Infill scores what was filled in; use study.prompt=half or prefix"),
    ],
)
def test_what_cannot_be_filled_in_or_scored_is_refused_before_any_work(prompt, words):
    session = SimpleNamespace(
        cfg=SimpleNamespace(study=SimpleNamespace(prompt=prompt)),
        metrics=[Infill(None)],
        build=lambda name: name,
        sampler=lambda method, name, label: SimpleNamespace(fills=name == "mdlm", fills_prefix=name == "ar"),
    )
    cells = [SimpleNamespace(method=name, sampler="own") for name in ("mdlm", "ar")]
    with pytest.raises(UserError, match=words):
        _check_prompts(session, cells)
    session.cfg.study.prompt = "prefix"
    _check_prompts(session, cells)  # which both can begin with


def test_an_autoregressive_model_goes_on_with_a_beginning_by_its_own_law():
    method = scramble(Autoregressive(tiny_problem(V, L), Autoregressive.Options()), std=0.5).eval()
    sampler, hidden_NL = sampler_of(method), torch.tensor([[False, True, True]]).expand(20_000, -1)
    x_XL = all_sequences(V, L)
    with torch.no_grad():
        law_X = (-method.bound(x_XL, generator_of(0)).total_B).exp() * (x_XL[:, 0] == 2)
        drawn = sampler.fill(torch.full((20_000, L), 2), hidden_NL, L, generator_of(1)).x_NL
    assert chi_square_p(counts_of(drawn, V), (law_X / law_X.sum()).numpy()) > 1e-3
    with pytest.raises(UserError, match="the beginning of a text fixed and nothing else; use study.prompt=prefix"):
        sampler.fill(torch.zeros((5, L), dtype=torch.int64), ~hidden_NL[:5], L, generator_of(1))
