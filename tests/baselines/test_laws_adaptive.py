"""Adaptive samplers: their rules by enumeration, their budgets as means, their calls counted by sequence."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.confidence import Confidence
from baselines.samplers.entropy_bounded import EntropyBounded
from baselines.samplers.klass import KLASS
from harness.contracts.world import scramble
from harness.errors import BudgetError
from harness.study.cells import Part
from harness.study.sampling import SamplerError, checked_draw, draw_samples
from harness.training.precision import Numerics
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    random_table,
    sampler_of,
    tiny_problem,
)

V, L = 3, 3


def mdlm_with(network: torch.nn.Module, length: int = L) -> MDLM:
    method = MDLM(tiny_problem(V, length), MDLMOptions()).eval()
    method.network = network
    return method


def law_of(table: TableNetwork, rule) -> tuple[np.ndarray, float]:
    """Law (X,) and mean calls of a rule (pattern, probabilities (L, V), what it kept) -> (positions, what it keeps)."""
    law: dict[tuple[int, ...], float] = {}
    calls = 0.0

    def follow(pattern: tuple[int, ...], chance: float, kept) -> None:
        nonlocal calls
        if V not in pattern:
            law[pattern] = law.get(pattern, 0.0) + chance
            return
        calls += chance
        p_LV = table.probabilities(pattern)
        shown, keeps = rule(pattern, p_LV, kept)
        for tokens in itertools.product(range(V), repeat=len(shown)):
            after = list(pattern)
            for i, token in zip(shown, tokens, strict=True):
                after[i] = token
            follow(tuple(after), chance * math.prod(p_LV[i, after[i]] for i in shown), keeps)

    follow((V,) * L, 1.0, None)
    return np.array([law[tuple(x)] for x in all_sequences(V, L).tolist()]), calls


def entropy_bounded(gamma: float):
    """Ben-Hamu et al.'s bound, by trying every beginning of the positions by entropy."""

    def rule(pattern, p_LV, kept):
        entropy = {i: -float((p_LV[i] * np.log(p_LV[i])).sum()) for i in range(L) if pattern[i] == V}
        order = sorted(entropy, key=lambda i: entropy[i])
        begins = [[entropy[i] for i in order[:k]] for k in range(1, len(order) + 1)]
        fits = [len(begin) for begin in begins if sum(begin) - max(begin) <= gamma]
        return order[: max(fits)], None

    return rule


def klass(confidence: float, kl: float, history: int = 1):
    """Kim et al., section 3, position by position."""

    def rule(pattern, p_LV, kept):
        before, count = kept or (p_LV, dict.fromkeys(range(L), -1))
        hidden = [i for i in range(L) if pattern[i] == V]
        moved = {i: float((p_LV[i] * np.log(p_LV[i] / before[i])).sum()) for i in hidden}
        first = kept is None
        count = {i: 0 if first else (count[i] + 1 if moved[i] < kl else 0) for i in hidden}
        ready = [i for i in hidden if p_LV[i].max() > confidence and count[i] >= history]
        return ready or [max(hidden, key=lambda i: p_LV[i].max())], (p_LV, count)

    return rule


@pytest.mark.parametrize("gamma", [1e-6, 0.75, 1e5])
def test_the_entropy_bound_draws_its_enumerated_law(gamma):
    table = random_table(V, L, seed=1)
    drawn = sampler_of(mdlm_with(table), EntropyBounded).run(60_000, math.log(gamma), generator_of(1), 1.0, 10**9)
    law_X, calls = law_of(table, entropy_bounded(gamma))
    assert chi_square_p(counts_of(drawn.x_NL, V), law_X) > 1e-3
    assert float(drawn.calls_N.double().mean()) == pytest.approx(calls, abs=0.02)
    assert calls == pytest.approx({1e-6: 3.0, 0.75: 2.0, 1e5: 1.0}[gamma], abs=1e-9 if gamma != 0.75 else 0.95)


@pytest.mark.parametrize(("confidence", "kl", "history"), [(0.6, 0.3, 1), (0.4, 1.5, 1), (0.4, 3.0, 2), (1.0, 0.1, 1)])
def test_klass_draws_its_enumerated_law(confidence, kl, history):
    table = random_table(V, L, seed=2)
    sampler = sampler_of(mdlm_with(table), KLASS, confidence=confidence, kl=kl, history=history)
    drawn = sampler.run(60_000, 0.0, generator_of(2), 1.0, 10**9)
    law_X, calls = law_of(table, klass(confidence, kl, history))
    assert chi_square_p(counts_of(drawn.x_NL, V), law_X) > 1e-3
    assert float(drawn.calls_N.double().mean()) == pytest.approx(calls, abs=0.02)


def scrambled(length: int = 16) -> MDLM:
    """A network whose sequences differ in how certain it is."""
    return scramble(MDLM(tiny_problem(7, length, width=32), MDLMOptions()), 3, std=1.0).eval()


@pytest.mark.parametrize("cls", [EntropyBounded, KLASS])
@pytest.mark.parametrize("nfe", [2, 3, 5, 9, 16])
def test_a_budget_is_met_in_the_mean_and_in_every_draw(cls, nfe):
    sampler = sampler_of(scrambled(), cls)
    with torch.inference_mode():
        for seed, n in ((0, 200), (1, 200), (2, 7), (3, 1)):
            calls_N = checked_draw(sampler, n, Part(nfe, 1.0), generator_of(seed)).calls_N.double()
            assert calls_N.mean() <= nfe
            assert n < 200 or calls_N.mean() > 0.6 * nfe, "and is made use of"


def test_sequences_take_as_many_calls_as_they_need():
    sampler = sampler_of(scrambled(), EntropyBounded)
    with torch.inference_mode():
        calls_N = checked_draw(sampler, 200, Part(6, 1.0), generator_of(0)).calls_N
    assert calls_N.min() < 6 < calls_N.max()


def test_a_study_keeps_mean_and_maximum():
    drawn = draw_samples(
        sampler_of(scrambled(), EntropyBounded),
        Part(6, 1.0),
        30,
        20,
        (0, 0),
        Numerics("cpu", "float32"),
        lambda *_: None,
    )
    assert 3.6 < drawn.calls["nfe_mean"] <= 6 < drawn.calls["nfe_max"] and drawn.nfe_token == 6
    plain = draw_samples(
        sampler_of(scrambled()), Part(6, 1.0), 30, 20, (0, 0), Numerics("cpu", "float32"), lambda *_: None
    )
    assert plain.calls == {}


def test_when_calls_run_out_those_with_the_fewest_masks_are_finished():
    """One token a call, and calls for half of them: no more are spent, and no mask is left."""
    sampler = sampler_of(mdlm_with(random_table(V, L, seed=4)), EntropyBounded)
    drawn = sampler.run(10, sampler.dials[0], generator_of(4), 1.0, 15)
    assert int(drawn.calls_N.sum()) <= 15 and int(drawn.x_NL.max()) < V
    assert sampler.run(10, sampler.dials[0], generator_of(4), 1.0, 15, finish=False) is None


def test_a_network_that_is_called_on_finished_sequences_is_found_out():
    class Careless(Confidence):
        adaptive = True

        def draw(self, n, nfe, generator, temperature=1.0):
            drawn = super().draw(n, nfe, generator, temperature)
            return dataclasses.replace(drawn, calls_N=torch.full((n,), nfe - 1))

    with pytest.raises(SamplerError, match="reports 10 calls at NFE 2; its networks saw 20"):
        checked_draw(sampler_of(mdlm_with(random_table(V, L, seed=5)), Careless), 10, Part(2, 1.0), generator_of(5))


def test_what_no_dial_can_meet_is_refused():
    sampler = sampler_of(mdlm_with(random_table(V, L, seed=6)), KLASS)
    with pytest.raises(BudgetError, match=r"nfe=1 cannot be met by MDLM, KLASS: .* takes 2 to 3 calls; use 2"):
        sampler.check_budget(1)
    with pytest.raises(BudgetError, match="use 3"):
        sampler.check_budget(64)
