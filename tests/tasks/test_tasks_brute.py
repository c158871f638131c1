"""Exact tasks against brute force: all sequences of small tasks, with laws that are worked out here in another way.

Shapes: L tokens, V symbols, X = V^L sequences, P = (V+1)^L patterns, in which the id V stands for "not known".
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from scipy import integrate

from harness.tasks.base import ExactTask
from harness.tasks.binsaw import Binsaw
from harness.tasks.hmm import HMM
from harness.tasks.permutation import Permutation
from harness.tasks.templates import Templates
from tests.kit.toys import all_sequences, chi_square_p, counts_of

TIGHT = 1e-9


# ---- the laws, once more ----------------------------------------------------------------------------------------------
def _wave(i: int, u: Fraction, length: int) -> Fraction:
    tau = (Fraction(i, length) + u) % 1
    return Fraction(1, 100) + Fraction(98, 100) * (1 - abs(2 * ((2 * tau) % 1) - 1))


def binsaw_law(length: int) -> np.ndarray:
    """The polynomial of each piece of [0, 1) in fractions, integrated term by term: no rounding until the end."""
    kinks = {(Fraction(k, 4) - Fraction(i, length)) % 1 for k in range(4) for i in range(length)}
    ends = sorted(kinks | {Fraction(0), Fraction(1)})
    p_X = np.zeros(2**length)
    for a, b in zip(ends, ends[1:], strict=False):
        thirds = [a + (b - a) / 3, a + 2 * (b - a) / 3]
        lines = []
        for i in range(length):  # p_i = c0 + c1 s with s = (u - a) / (b - a)
            y1, y2 = (_wave(i, u, length) for u in thirds)
            lines.append((2 * y1 - y2, 3 * (y2 - y1)))
        # Grow the product bit by bit: after i bits there are 2^i polynomials.
        products = [[Fraction(1)]]
        for c0, c1 in lines:
            products = [_times(poly, line) for poly in products for line in ((1 - c0, -c1), (c0, c1))]
        p_X += [float((b - a) * sum(c / (k + 1) for k, c in enumerate(poly))) for poly in products]
    return p_X


def _times(poly: list[Fraction], line: tuple[Fraction, Fraction]) -> list[Fraction]:
    low = [c * line[0] for c in poly] + [Fraction(0)]
    high = [Fraction(0)] + [c * line[1] for c in poly]
    return [a + b for a, b in zip(low, high, strict=True)]


def hmm_law(length: int, states: int, symbols: int, stay: float, purity: float) -> np.ndarray:
    """Sum over all paths."""
    own = symbols // states
    p_X = np.zeros(symbols**length)
    x_XL = all_sequences(symbols, length).numpy()
    for path in itertools.product(range(states), repeat=length):
        weight = 1 / states
        for a, b in itertools.pairwise(path):
            weight *= stay if a == b else (1 - stay) / (states - 1)
        is_own_XL = x_XL // own == np.array(path)
        p_X += weight * np.where(is_own_XL, purity / own, (1 - purity) / (symbols - own)).prod(1)
    return p_X


def templates_law(task: Templates) -> np.ndarray:
    x_XL = all_sequences(task.vocab_size, task.length).numpy()
    p_X = np.zeros(len(x_XL))
    for template_L in task.template_CL:
        hit_XL = x_XL == template_L
        p_X += np.where(hit_XL, task.accuracy, (1 - task.accuracy) / (task.vocab_size - 1)).prod(1)
    return p_X / len(task.template_CL)


def permutation_law(length: int) -> np.ndarray:
    x_XL = all_sequences(length, length).tolist()
    return np.array([float(sorted(x) == list(range(length))) for x in x_XL]) / math.factorial(length)


@cache
def world(name: str) -> tuple[ExactTask, np.ndarray]:
    """A small task and its law over all sequences."""
    if name == "binsaw":
        return Binsaw(8), binsaw_law(8)
    if name == "binsaw-odd":
        return Binsaw(5), binsaw_law(5)
    if name == "hmm":
        return HMM(5, 2, 4, 0.8, 0.9), hmm_law(5, 2, 4, 0.8, 0.9)
    if name == "hmm-three":
        return HMM(4, 3, 6, 0.9, 0.96), hmm_law(4, 3, 6, 0.9, 0.96)
    if name == "hmm-zeros":  # states that show themselves and never change: most sequences are impossible
        return HMM(4, 3, 3, 1.0, 1.0), hmm_law(4, 3, 3, 1.0, 1.0)
    if name == "templates":
        task = Templates(5, classes=4, symbols=3, accuracy=0.8)
    elif name == "templates-zeros":
        task = Templates(5, classes=4, symbols=3, accuracy=1.0)
    else:
        return Permutation(4), permutation_law(4)
    return task, templates_law(task)


WORLDS = ("binsaw", "binsaw-odd", "hmm", "hmm-three", "hmm-zeros", "templates", "templates-zeros", "permutation")


def entropy_of(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def with_unknowns(p_X: np.ndarray, vocab_size: int, length: int) -> np.ndarray:
    """p(x_S) of every pattern, shape (V+1,) * L: along each axis the last entry is the sum over the others."""
    table = p_X.reshape([vocab_size] * length)
    for axis in range(length):
        table = np.concatenate([table, table.sum(axis, keepdims=True)], axis=axis)
    return table


# ---- the tests --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WORLDS)
def test_log_prob_of_all_sequences(name):
    task, p_X = world(name)
    assert p_X.sum() == pytest.approx(1, abs=1e-12)
    log_X = task.log_prob(all_sequences(task.vocab_size, task.length))
    assert log_X.dtype == torch.float64 and log_X.exp().sum().item() == pytest.approx(1, abs=1e-12)
    possible = p_X > 0
    assert np.abs(log_X.numpy()[possible] - np.log(p_X[possible])).max() < TIGHT
    assert (log_X.numpy()[~possible] == -np.inf).all()


@pytest.mark.parametrize("name", WORLDS)
def test_numbers(name):
    task, p_X = world(name)
    table = p_X.reshape([task.vocab_size] * task.length)
    axes = range(task.length)
    marginals = [table.sum(tuple(a for a in axes if a != i)) for i in axes]
    exact = task.exact
    assert exact.entropy == pytest.approx(entropy_of(p_X), abs=TIGHT) and exact.error == 0
    total_correlation = sum(map(entropy_of, marginals)) - entropy_of(p_X)
    assert exact.total_correlation == pytest.approx(total_correlation, abs=TIGHT)
    support = task.support()
    expected = all_sequences(task.vocab_size, task.length)[torch.from_numpy(p_X > 0)]
    assert support.dtype == torch.int64 and support.tolist() == expected.tolist()


@pytest.mark.parametrize("name", WORLDS)
def test_conditionals_of_every_pattern(name):
    """Every set of known positions with every value, the impossible ones among them."""
    task, p_X = world(name)
    V, L = task.vocab_size, task.length
    law = with_unknowns(p_X, V, L)
    pattern_PL = all_sequences(V + 1, L)
    known_PL = pattern_PL < V
    found_PLV = task.conditionals(pattern_PL, known_PL).exp().numpy()
    assert np.isfinite(found_PLV).all() and (found_PLV.sum(2) > 0.5).all()
    p_P = law[tuple(pattern_PL.numpy().T)]
    possible_P = p_P > 0
    assert possible_P.any()
    for i in range(L):
        shown_P = known_PL[:, i].numpy()
        for v in range(V):
            # Known: a point mass, whatever else is known. Unknown: the ratio of two sums over the law.
            expected_P = (pattern_PL[:, i] == v).double().numpy()
            filled_PL = pattern_PL.numpy().copy()
            filled_PL[:, i] = v
            ratio_P = law[tuple(filled_PL.T)] / np.where(possible_P, p_P, 1)
            expected_P = np.where(shown_P, expected_P, ratio_P)
            checked_P = possible_P | shown_P
            assert np.abs(found_PLV[:, i, v] - expected_P)[checked_P].max() < TIGHT


@pytest.mark.parametrize("name", ["hmm-zeros", "templates-zeros"])
def test_impossible_prefixes_give_marginals(name):
    task, p_X = world(name)
    V, L = task.vocab_size, task.length
    pattern_PL = all_sequences(V + 1, L)
    impossible_P = torch.from_numpy(with_unknowns(p_X, V, L)[tuple(pattern_PL.numpy().T)] == 0)
    known_PL = pattern_PL < V
    nothing_PL = torch.zeros_like(known_PL)
    marginal_PLV = task.conditionals(pattern_PL, nothing_PL).exp()
    chosen = impossible_P[:, None] & ~known_PL
    assert chosen.any()
    assert torch.allclose(task.conditionals(pattern_PL, known_PL).exp()[chosen], marginal_PLV[chosen], atol=1e-12)
    statistics = task.statistics(all_sequences(V, L))
    assert torch.isfinite(statistics).all()


def test_clashing_permutations_stay_within_the_free_symbols():
    x_NL = torch.tensor([[1, 1, 4, 4], [0, 0, 0, 4]])
    p_NLV = Permutation(4).conditionals(x_NL, x_NL < 4).exp()
    expected_NV = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]]).double() / 3
    assert torch.allclose(p_NLV[:, 3], expected_NV, atol=1e-12)
    assert torch.allclose(p_NLV[0, 2], expected_NV[0], atol=1e-12)


@pytest.mark.parametrize("name", WORLDS)
def test_samples_follow_the_law(name):
    task, p_X = world(name)
    expected = 5.5 / p_X[p_X > 0].min()
    if expected < 200_000:
        x_NL = task.sample(int(max(expected, 2000)), np.random.default_rng(3))
        assert chi_square_p(counts_of(torch.from_numpy(x_NL), task.vocab_size), p_X) > 1e-3
        return
    # Too many rare sequences to count one by one: group them by size of p, which any error in the law would move.
    x_NL = task.sample(100_000, np.random.default_rng(3))
    group_X = np.digitize(np.cumsum(np.sort(p_X)), np.linspace(0, 1, 30)[1:-1])[np.argsort(np.argsort(p_X))]
    counts_X = counts_of(torch.from_numpy(x_NL), task.vocab_size)
    by_group = [np.bincount(group_X, weights=weight, minlength=29) for weight in (counts_X, p_X)]
    assert chi_square_p(*by_group) > 1e-3
    # And the pairs of neighbours, which the groups do not tell apart.
    for i in range(task.length - 1):
        table = p_X.reshape([task.vocab_size] * task.length)
        pair = table.sum(tuple(a for a in range(task.length) if a not in (i, i + 1)))
        counts = np.zeros_like(pair)
        np.add.at(counts, (x_NL[:, i], x_NL[:, i + 1]), 1)
        assert chi_square_p(counts, pair) > 1e-4


# ---- causes and statistics --------------------------------------------------------------------------------------------
def test_latent_information_of_binsaw():
    """I(X; u) = H(X) - H(X | u), the second by an adaptive rule between the kinks."""
    task, p_X = world("binsaw")

    def bits(u: float) -> float:
        phases = [(2 * (i / 8 + u)) % 1 for i in range(8)]
        return sum(entropy_of(np.array([p, 1 - p])) for p in (0.01 + 0.98 * (1 - abs(2 * s - 1)) for s in phases))

    given = sum(integrate.quad(bits, k / 8, (k + 1) / 8, epsabs=1e-12)[0] for k in range(8))
    assert task.exact.latent_information == pytest.approx(entropy_of(p_X) - given, abs=TIGHT)


def test_latent_information_of_the_others():
    task, p_X = world("templates")
    given = 5 * entropy_of(np.array([0.8, 0.1, 0.1]))
    assert task.exact.latent_information == pytest.approx(entropy_of(p_X) - given, abs=TIGHT)
    task, p_X = world("hmm")
    given = 5 * entropy_of(np.array([0.45, 0.45, 0.05, 0.05]))
    assert task.exact.latent_information == pytest.approx(entropy_of(p_X) - given, abs=TIGHT)
    assert world("permutation")[0].exact.latent_information is None


def test_posterior_on_the_circle():
    """E[cos 4 pi u | x] and E[sin 4 pi u | x] by an adaptive rule."""
    task, p_X = world("binsaw")
    x_XL = all_sequences(2, 8)
    for k in (0, 7, 90, 165, 255):
        bits = x_XL[k].numpy()

        def joint(u: float, wave, bits=bits) -> float:
            p = 0.01 + 0.98 * (1 - np.abs(2 * ((2 * (np.arange(8) / 8 + u)) % 1) - 1))
            return np.where(bits == 1, p, 1 - p).prod() * wave(4 * math.pi * u)

        cos, sin = (
            sum(integrate.quad(joint, j / 8, (j + 1) / 8, args=(wave,), epsabs=1e-13)[0] for j in range(8)) / p_X[k]
            for wave in (math.cos, math.sin)
        )
        expected = [cos, sin]
        assert task.statistics(x_XL[k : k + 1])[0].tolist() == pytest.approx(expected, abs=TIGHT)


def test_state_and_pair_counts_of_all_paths():
    task, p_X = world("hmm-three")
    rng = np.random.default_rng(0)
    for k in rng.choice(len(p_X), size=6, replace=False):
        x_L = all_sequences(6, 4)[k]
        expected = np.zeros(12)
        for path in itertools.product(range(3), repeat=4):
            weight = 1 / 3 / p_X[k]
            for a, b in itertools.pairwise(path):
                weight *= 0.9 if a == b else 0.05
            weight *= math.prod(0.48 if x // 2 == a else 0.01 for a, x in zip(path, x_L.tolist(), strict=True))
            for a in path:
                expected[a] += weight / 4
            for a, b in itertools.pairwise(path):
                expected[3 + 3 * a + b] += weight / 3
        assert task.statistics(x_L[None])[0].tolist() == pytest.approx(expected, abs=TIGHT)


def test_posterior_over_classes():
    task, p_X = world("templates")
    x_XL = all_sequences(3, 5)
    hit_XCL = x_XL.numpy()[:, None] == task.template_CL
    joint_XC = np.where(hit_XCL, 0.8, 0.1).prod(2) / 4
    assert np.abs(task.posterior(x_XL).numpy() - joint_XC / p_X[:, None]).max() < TIGHT
    assert torch.equal(task.statistics(x_XL), task.posterior(x_XL))
