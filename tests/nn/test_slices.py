"""What networks read in slices is what they read in one piece: bounds, instruments and draws, whatever is read at a time."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import yaml

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.top_p import TopP, TopPOptions
from harness.config.registry import build_options
from harness.contracts.world import PROBLEM, L, V, X, build_method
from harness.diffusion import masked
from harness.nn.networks import TokenNetwork
from harness.nn.slices import Logits, at_most, by_sequences, head, unshared
from harness.study.budget import count_flops
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

METHODS = Path(__file__).parents[2] / "studies" / "method"
NAMES = ("ar", "mdlm", "fuji", "seq", "seq_discrete", "seq_embedded")


@functools.cache
def method_of(name: str):
    return build_method(yaml.safe_load((METHODS / f"{name}.yaml").read_text()) | {"samplers": {}})


def read(name: str, tokens: int, monkeypatch, rows: int | None = None) -> tuple:
    """Bound, instruments and samples of a method that reads so many tokens, and so many rows of logits, at a time."""
    if rows is not None:
        monkeypatch.setattr(masked, "_AT_ONCE", rows * V)
    method = method_of(name)
    with torch.no_grad(), at_most(tokens):
        bound = method.bound(X, generator_of(1))
        found = method.diagnose(X, generator_of(2))
        node = yaml.safe_load((METHODS / f"{name}.yaml").read_text())["samplers"]
        label = next(iter(node))
        cls, options = build_options(yaml.safe_load((METHODS.parent / "sampler" / f"{label}.yaml").read_text()))
        nfe = L if name == "ar" else 4
        return bound, found, cls(method, options).draw(16, nfe, generator_of(3)).x_NL


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_sequences_and_rows_change_no_number(name, monkeypatch):
    bound, found, x_NL = read(name, 1 << 20, monkeypatch)
    for tokens, rows in ((3 * L, 5), (1, 1)):
        again, instruments, drawn = read(name, tokens, monkeypatch, rows)
        assert torch.allclose(again.total_B, bound.total_B, rtol=1e-6, atol=1e-5)
        assert instruments == pytest.approx(found, rel=1e-4, abs=1e-4)
        assert drawn.equal(x_NL)


def test_a_bound_is_the_same_to_the_bit_in_one_slice_and_in_several(monkeypatch):
    """With slices of 4 sequences, which the products of this processor's library round alike."""
    for name in NAMES:
        whole, sliced = (read(name, tokens, monkeypatch)[0].total_B for tokens in (1 << 20, 4 * L))
        assert whole.equal(sliced), name


def test_training_is_in_one_piece_and_has_all_of_its_gradient():
    calls = []

    def run(x_BL: torch.Tensor) -> torch.Tensor:
        calls.append(len(x_BL))
        return x_BL.double()

    with at_most(1):
        by_sequences(run, X)
        with torch.no_grad():
            by_sequences(run, X)
    assert calls == [len(X), *[1] * len(X)]


@torch.no_grad()
def test_draws_in_slices_have_the_law_of_two_masked_calls(monkeypatch):
    """Enumerated: which positions the first call reveals, what it draws there, and the second call given that."""
    small, n = tiny_problem(3, 2), 40_000
    method = scramble(MDLM(small, MDLMOptions()), seed=4, std=0.5).eval()
    x_XL, law_X = all_sequences(3, 2), torch.zeros(9, dtype=torch.float64)

    def log_p(shown_XL: torch.Tensor) -> torch.Tensor:
        seen = method.network(shown_XL).whole().double().log_softmax(-1).view(9, 2, 3)
        return seen.gather(2, x_XL[..., None])[..., 0]

    for pattern in all_sequences(2, 2).bool():  # True: revealed by the first call, each with probability a half
        first = log_p(torch.full_like(x_XL, 3))
        second = log_p(torch.where(pattern, x_XL, 3))
        law_X += 0.25 * torch.where(pattern, first, second).sum(1).exp()
    monkeypatch.setattr(masked, "_AT_ONCE", 3 * 1000)
    with at_most(2 * 777):
        draw = sampler_of(method).draw(n, 2, generator_of(5))
    assert chi_square_p(counts_of(draw.x_NL, 3), law_X.numpy()) > 1e-3


def test_a_nucleus_in_slices_is_that_of_the_whole(monkeypatch):
    sampler = TopP(method_of("mdlm"), TopPOptions(p=0.6))
    with torch.no_grad():
        whole = sampler.draw(16, 4, generator_of(6)).x_NL
        monkeypatch.setattr(masked, "_AT_ONCE", 3 * V)
        assert sampler.draw(16, 4, generator_of(6)).x_NL.equal(whole)


def test_the_head_makes_no_more_logits_at_a_time_than_draws_read(monkeypatch):
    monkeypatch.setattr(masked, "_AT_ONCE", 10 * V)
    sizes, method = [], MDLM(PROBLEM, MDLMOptions()).eval()
    method.network.head.register_forward_hook(lambda module, inputs, out: sizes.append(len(out)))
    with torch.no_grad():
        sampler_of(method).draw(16, 1, generator_of(0))
        method.bound(X, generator_of(0))
    assert max(sizes) == 10 and sum(sizes[:13]) == 16 * L


def test_logits_of_a_tensor_are_that_tensor():
    logits_MV = torch.randn(5, 3, generator=generator_of(0))
    same = Logits.of(logits_MV)
    assert (len(same), tuple(same.shape)) == (5, (5, 3)) and same.whole().equal(logits_MV)
    assert torch.cat(list(same.then(lambda l_RV: 2 * l_RV).split(2))).equal(2 * logits_MV)


def test_a_head_reads_few_numbers_of_rows_and_says_what_it_says_of_each():
    linear, seen = torch.nn.Linear(8, 5), set()
    linear.register_forward_hook(lambda module, inputs, output: seen.add(len(inputs[0])))
    h_RE = torch.randn(1100, 8, requires_grad=True)
    for rows in (0, 1, 31, *range(512, 1024)):
        torch.testing.assert_close(head(linear, h_RE[:rows]), linear(h_RE[:rows])[:rows])
    seen.clear()
    for rows in range(512, 1024):
        head(linear, h_RE[:rows])
    assert len(seen) == 17 and max(seen) == 1024
    head(linear, h_RE[:513]).sum().backward()
    assert h_RE.grad[:513].any(1).all() and not h_RE.grad[513:].any()


@pytest.mark.parametrize("time", [False, True])
def test_sequences_that_are_all_the_same_go_through_the_trunk_as_one(time):
    """And say what they say one by one; the head reads each. Nothing is shared where a token or a time differs."""
    network = scramble(TokenNetwork(PROBLEM.shape, V, time=time))
    blank_BL, t_B = torch.full((6, L), V), torch.full((6,), 0.7)
    select_BL = torch.rand(6, L, generator=generator_of(1)) < 0.5

    def flops(x_BL: torch.Tensor, t_B: torch.Tensor) -> int:
        with torch.no_grad():
            return count_flops(lambda: network(x_BL, select_BL[: len(x_BL)], t_B))

    with torch.no_grad():
        shared = network(blank_BL, select_BL, t_B).whole()
        each = [network(blank_BL[i : i + 1], select_BL[i : i + 1], t_B[i : i + 1]).whole() for i in range(6)]
    assert torch.allclose(shared, torch.cat(each), atol=1e-6)
    assert flops(blank_BL, t_B) == flops(blank_BL[:1], t_B[:1])
    with unshared():
        assert flops(blank_BL, t_B) == 6 * flops(blank_BL[:1], t_B[:1])
    other_BL, other_B = blank_BL.clone(), t_B.clone()
    other_BL[3, 2], other_B[3] = 0, 0.2
    assert flops(other_BL, t_B) == 6 * flops(blank_BL[:1], t_B[:1])
    assert flops(blank_BL, other_B) == (6 if time else 1) * flops(blank_BL[:1], t_B[:1])
