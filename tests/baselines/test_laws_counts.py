"""Counted and autoregressive models: laws that sum to 1, values by hand, samples that follow the law."""

import math

import numpy as np
import pytest
import torch

from baselines.autoregressive import Autoregressive
from baselines.ngram import NGram, NGramOptions
from harness.config.fields import NoOptions, check_fields
from harness.errors import BudgetError, UserError
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

V, L = 3, 4
GENERATOR = generator_of(0)


def text_of(rows: int, length: int = L, vocab: int = V, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(vocab, p=[0.6, 0.3, 0.1][:vocab], size=(rows, length)).astype(np.uint16)


def ngram(order: int, train_NL: np.ndarray, vocab: int = V) -> NGram:
    method = NGram(tiny_problem(vocab, train_NL.shape[1]), NGramOptions(order=order))
    method.fit(train_NL)
    return method


# ---- n-grams --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 4, 200])
def test_probabilities_of_all_sequences_sum_to_1(order, rows):
    method = ngram(order, text_of(rows, length=5))
    nll_X = method.bound(all_sequences(V, 5), GENERATOR).total_B
    assert nll_X.dtype == torch.float64 and nll_X.shape == (V**5,)
    assert torch.exp(-nll_X).sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_next_token_probabilities_sum_to_1_after_every_history(order):
    """Seen histories and unseen ones: p(prefix + v) summed over v must be p(prefix)."""
    method = ngram(order, text_of(3, seed=1))
    p_X = torch.exp(-method.bound(all_sequences(V, L), GENERATOR).total_B).view([V] * L)
    short = NGram(tiny_problem(V, 3), NGramOptions(order=order))
    short.levels = method.levels
    p_prefix = torch.exp(-short.bound(all_sequences(V, 3), GENERATOR).total_B).view([V] * 3)
    assert torch.allclose(p_X.sum(-1), p_prefix, atol=1e-12)


@pytest.mark.parametrize(("span", "order"), [(1, 2), (2, 3), (4, 5)])
def test_validation_text_chooses_the_order_that_the_law_has(span, order):
    """Each token is that of `span` places before it with probability 0.9: longer histories only spread the counts."""
    rng = np.random.default_rng(span)
    x_NL = rng.integers(6, size=(1500, 24))
    for i in range(span, 24):
        x_NL[:, i] = np.where(rng.random(1500) < 0.9, x_NL[:, i - span], x_NL[:, i])
    best = NGram(tiny_problem(6, 24), NGramOptions(order=0))
    best.fit(x_NL[:1200])
    best.settle(x_NL[1200:])
    fixed, test_BL = ngram(order, x_NL[:1200], 6), torch.from_numpy(x_NL[1200:])
    assert best.order == order and best.title == "Best n-gram"
    assert torch.equal(best.bound(test_BL, GENERATOR).total_B, fixed.bound(test_BL, GENERATOR).total_B)
    drawn, same = (sampler_of(each).draw(50, 0, generator_of(1)).x_NL for each in (best, fixed))
    assert torch.equal(drawn, same) and f"order {order}" in best.bound(test_BL, GENERATOR).estimator


def test_the_largest_order_is_what_keys_have_room_for():
    assert NGram(tiny_problem(50_000), NGramOptions(order=0)).order == 3
    assert NGram(tiny_problem(27), NGramOptions(order=0)).order == 6


def test_witten_bell_by_hand_on_ten_tokens():
    """Text a b a b a c a b a a (a=0, b=1, c=2) and V = 4; the symbol 3 never occurs.

    Unigrams: c = 10, T = 3, uniform 1/4, so p(a) = (6 + 3/4) / 13, p(b) = (3 + 3/4) / 13, p(c) = (1 + 3/4) / 13,
    p(3) = (3/4) / 13. After a: a b x3, a c, a a: c = 5, T = 3. After b: a x3: c = 3, T = 1. After 3: unseen.
    """
    method = ngram(2, np.array([[0, 1, 0, 1, 0, 2, 0, 1, 0, 0]]), vocab=4)
    p_a, p_b, p_c, p_3 = 6.75 / 13, 3.75 / 13, 1.75 / 13, 0.75 / 13
    expected = {
        (0, 1): p_a * (3 + 3 * p_b) / 8,
        (0, 2): p_a * (1 + 3 * p_c) / 8,
        (0, 3): p_a * (0 + 3 * p_3) / 8,
        (1, 0): p_b * (3 + 1 * p_a) / 4,
        (1, 2): p_b * (0 + 1 * p_c) / 4,
        (3, 0): p_3 * p_a,
        (3, 3): p_3 * p_3,
    }
    short = NGram(tiny_problem(4, 2), NGramOptions(order=2))
    short.levels = method.levels
    nll = short.bound(torch.tensor(list(expected)), GENERATOR).total_B
    assert torch.exp(-nll).tolist() == pytest.approx(list(expected.values()), rel=1e-12)


def test_counts_do_not_run_over_the_end_of_a_sequence():
    """Rows are windows of their own: the pair (1, 0) across two rows was never seen."""
    method = ngram(2, np.array([[0, 1], [0, 1]]))
    p_0 = (2 + 2 / 3) / 6  # two of four tokens, T = 2, uniform 1/3
    p_1 = p_0
    nll = method.bound(torch.tensor([[1, 0]]), GENERATOR).total_B
    assert torch.exp(-nll).item() == pytest.approx(p_1 * p_0, rel=1e-12), "1 was never a history, so backs off"


@pytest.mark.parametrize("order", [1, 2, 3])
def test_samples_follow_the_law(order):
    method = ngram(order, text_of(6, length=3, seed=2))
    law_X = torch.exp(-method.bound(all_sequences(V, 3), GENERATOR).total_B).numpy()
    draw = sampler_of(method).draw(60_000, 0, generator_of(1))
    assert chi_square_p(counts_of(draw.x_NL, V), law_X) > 1e-3
    assert draw.nfe == 0


def test_bound_is_marked_exact_and_takes_any_integer_type():
    method = ngram(3, text_of(10))
    x_BL = torch.from_numpy(text_of(5, seed=3).astype(np.int64))
    bound = method.bound(x_BL, GENERATOR)
    assert bound.exact
    assert torch.equal(bound.total_B, method.bound(x_BL.int(), GENERATOR).total_B)


def test_an_order_longer_than_the_sequences_is_counted_as_far_as_they_go():
    train_NL = text_of(50, length=2)
    long, short = ngram(5, train_NL), ngram(2, train_NL)
    x_XL = all_sequences(V, 2)
    assert torch.equal(long.bound(x_XL, GENERATOR).total_B, short.bound(x_XL, GENERATOR).total_B)
    assert sampler_of(long).draw(8, 0, generator_of(0)).x_NL.shape == (8, 2)


def test_refusals_are_one_line_with_a_valid_choice():
    with pytest.raises(UserError, match=r"^n-gram order=9 does not fit a vocabulary of 50257; choose 1 to 3$"):
        NGram(tiny_problem(50257), NGramOptions(order=9))
    with pytest.raises(UserError, match="order=-1"):
        check_fields(NGramOptions(order=-1), "")
    method = ngram(1, text_of(4))
    with pytest.raises(BudgetError, match="use 0$"):
        sampler_of(method).draw(1, 4, GENERATOR)
    with pytest.raises(UserError, match="temperature=0.5"):
        sampler_of(method).draw(1, 0, GENERATOR, temperature=0.5)


# ---- the autoregressive model ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ar() -> Autoregressive:
    torch.manual_seed(0)
    return scramble(Autoregressive(tiny_problem(V, 3), NoOptions()), seed=3, std=0.15).eval()


@torch.no_grad()
def test_bound_is_the_chain_rule_over_prefixes(ar):
    """Each factor from a call of its own that sees only the start symbol and the prefix."""
    x_XL = all_sequences(V, 3)
    explicit = torch.zeros(len(x_XL), dtype=torch.float64)
    for i in range(3):
        prefix = torch.cat((torch.full((len(x_XL), 1), V), x_XL[:, :i]), dim=1)
        log_p = ar.network(prefix).whole().view(*prefix.shape, V)[:, -1].double().log_softmax(-1)
        explicit -= log_p[torch.arange(len(x_XL)), x_XL[:, i]]
    bound = ar.bound(x_XL, GENERATOR)
    assert bound.exact
    assert torch.allclose(bound.total_B, explicit, atol=1e-5)
    assert explicit.std() > 0.5, "a model that says the same of everything tests nothing"
    assert torch.exp(-bound.total_B).sum().item() == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
def test_autoregressive_samples_follow_the_bound(ar):
    law_X = torch.exp(-ar.bound(all_sequences(V, 3), GENERATOR).total_B).numpy()
    draw = sampler_of(ar).draw(60_000, 3, generator_of(4))
    assert (draw.nfe, draw.draw_dtype) == (3, "float64")
    assert chi_square_p(counts_of(draw.x_NL, V), law_X) > 1e-3


@torch.no_grad()
def test_autoregressive_temperature_sharpens_each_factor(ar):
    x_XL = all_sequences(V, 3)
    start = torch.cat((torch.full((len(x_XL), 1), V), x_XL[:, :-1]), dim=1)
    logits_XLV = ar.network(start).whole().view(*x_XL.shape, V)
    log_p = (logits_XLV.double() / 0.6).log_softmax(-1).gather(2, x_XL[:, :, None]).sum((1, 2))
    draw = sampler_of(ar).draw(60_000, 3, generator_of(5), temperature=0.6)
    assert chi_square_p(counts_of(draw.x_NL, V), log_p.exp().numpy()) > 1e-3


def test_loss_is_nats_per_token(ar):
    x_XL = all_sequences(V, 3)
    expected = ar.bound(x_XL, GENERATOR).total_B.mean().item() / 3
    assert ar.loss(x_XL, GENERATOR).total.item() == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(expected)
