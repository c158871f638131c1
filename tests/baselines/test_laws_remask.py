"""First-hitting and remasking on the weights of a masked model against laws by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.first_hitting import FirstHitting
from baselines.samplers.remask import Remask
from harness.diffusion.masked import step_alphas
from harness.diffusion.schedules import TOKEN_SCHEDULES, token_schedule
from harness.errors import BudgetError, UserError
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    random_table,
    sampler_law,
    sampler_of,
    tiny_problem,
)

V, L = 3, 3


def mdlm_with(network: torch.nn.Module, length: int = L, schedule: str = "linear") -> MDLM:
    method = MDLM(tiny_problem(V, length), MDLMOptions(schedule=schedule)).eval()
    method.network = network
    return method


# ---- first hitting --------------------------------------------------------------------------------------------------
def grouped_law(table: TableNetwork, sizes: list[int]) -> np.ndarray:
    """Every order equally likely, its first `sizes[0]` positions revealed together, then the next ones, (X,)."""
    law = np.zeros(V**L)
    for order in itertools.permutations(range(L)):
        for number, x in enumerate(all_sequences(V, L).tolist()):
            shown, chance, rest = [V] * L, 1.0, list(order)
            for size in sizes:
                now, rest = rest[:size], rest[size:]
                p_LV = table.probabilities(tuple(shown))
                chance *= math.prod(p_LV[i, x[i]] for i in now)
                for i in now:
                    shown[i] = x[i]
            law[number] += chance / math.factorial(L)
    return law


@pytest.mark.parametrize(("nfe", "sizes"), [(3, [1, 1, 1]), (2, [2, 1]), (1, [3])])
def test_first_hitting_draws_the_law_of_random_orders(nfe, sizes):
    table = random_table(V, L, seed=1)
    drawn = sampler_of(mdlm_with(table), FirstHitting).draw(60_000, nfe, generator_of(1))
    assert chi_square_p(counts_of(drawn.x_NL, V), grouped_law(table, sizes)) > 1e-3


def test_with_a_call_for_each_token_it_is_what_the_ancestral_sampler_tends_to():
    """The distance of the ancestral law from first-hitting's falls as 1/K; draws tell it from that of few steps."""
    table = random_table(V, L, seed=2)
    limit = grouped_law(table, [1] * L)
    far = [
        np.abs(sampler_law(table, step_alphas(token_schedule("linear"), k), V, L) - limit).sum() for k in (4, 16, 64)
    ]
    assert far[0] > 3 * far[1] > 9 * far[2] and far[2] < 0.02
    drawn = counts_of(sampler_of(mdlm_with(table), FirstHitting).draw(60_000, L, generator_of(2)).x_NL, V)
    assert chi_square_p(drawn, limit) > 1e-3
    assert chi_square_p(drawn, sampler_law(table, [0.0, 0.5, 1.0], V, L)) < 1e-3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic"])
def test_each_sequence_of_a_batch_has_times_and_places_of_its_own(schedule):
    """Times of the first reveal are those of the largest of L draws; two sequences of a batch are independent."""
    sampler = sampler_of(mdlm_with(random_table(V, L, seed=3), schedule=schedule), FirstHitting)
    steps = list(sampler.steps(20_000, L, generator_of(3)))
    alpha_N = sampler.method.schedule.alpha(steps[0][1])
    assert float(alpha_N.mean()) == pytest.approx(1 / (L + 1), abs=0.01), "the first of L uniform levels of alpha"
    first_N = steps[0][0].double().argmax(1)
    pairs = torch.bincount(first_N[0::2] * L + first_N[1::2], minlength=L * L).numpy()
    assert chi_square_p(pairs, np.full(L * L, 1 / L**2)) > 1e-3
    assert abs(np.corrcoef(alpha_N[0::2], alpha_N[1::2])[0, 1]) < 0.05


def test_its_paths_have_its_law():
    table, copies = random_table(V, L, seed=4), 3000
    sampler = sampler_of(mdlm_with(table), FirstHitting)
    nll_CX = sampler.path_nll(all_sequences(V, L).repeat(copies, 1), 2, generator_of(4)).view(copies, -1)
    assert (-nll_CX).exp().mean(0).numpy() == pytest.approx(grouped_law(table, [2, 1]), abs=0.01)


def test_it_has_no_use_for_more_calls_than_tokens():
    with pytest.raises(BudgetError, match=r"nfe=4 cannot be met by MDLM, first hitting: there are 3 tokens; use 3"):
        sampler_of(mdlm_with(random_table(V, L, seed=5)), FirstHitting).check_budget(4)


@pytest.mark.parametrize("name", sorted(TOKEN_SCHEDULES))
def test_time_is_the_inverse_of_alpha(name):
    schedule, t = token_schedule(name), torch.linspace(0, 1, 33, dtype=torch.float64)
    assert schedule.time(schedule.alpha(t)).numpy() == pytest.approx(t.numpy(), abs=1e-7)


# ---- remasking ------------------------------------------------------------------------------------------------------
KINDS = [
    {"kind": "cap", "eta": 0.3},
    {"kind": "rescale", "eta": 0.7},
    {"kind": "loop", "eta": 0.6, "on": 0.6, "off": 0.2, "alpha_on": 0.7},
]


def remasked_law(table: TableNetwork, steps, length: int) -> dict[tuple[int, ...], float]:
    """Law over patterns, pushed through each step: a shown token is masked with sigma, a masked one revealed."""
    law = {(V,) * length: 1.0}
    for step in steps:
        after: dict[tuple[int, ...], float] = {}
        for pattern, mass in law.items():
            p_LV = table.probabilities(pattern)
            choices = [
                [(token, 1.0 - step.sigma), (V, step.sigma)]
                if token < V
                else [(v, step.reveal * p_LV[i, v]) for v in range(V)] + [(V, 1.0 - step.reveal)]
                for i, token in enumerate(pattern)
            ]
            for outcome in itertools.product(*choices):
                key = tuple(token for token, _ in outcome)
                after[key] = after.get(key, 0.0) + mass * math.prod(p for _, p in outcome)
        law = after
    return law


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o["kind"])
def test_remasking_draws_the_law_of_its_steps(options):
    table, nfe = random_table(V, 2, seed=6), 5
    sampler = sampler_of(mdlm_with(table, 2), Remask, **options)
    found = remasked_law(table, sampler.steps(nfe), 2)
    law_X = np.array([found.get(tuple(x), 0.0) for x in all_sequences(V, 2).tolist()])
    assert law_X.sum() == pytest.approx(1.0), "no mask is left"
    drawn = counts_of(sampler.draw(60_000, nfe, generator_of(6)).x_NL, V)
    assert chi_square_p(drawn, law_X) > 1e-3
    plain = [
        step.__class__(step.alpha_t, step.alpha_s, 0.0) for step in sampler.steps(nfe) if step.alpha_t < step.alpha_s
    ]
    found = remasked_law(table, plain, 2)
    assert chi_square_p(drawn, np.array([found[tuple(x)] for x in all_sequences(V, 2).tolist()])) < 1e-3


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o["kind"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 8, 64])
def test_the_share_of_shown_tokens_is_alpha_whatever_is_masked_again(options, nfe):
    """Their theorem on marginals: sigma changes the path of a token and not the law of what is shown."""
    steps = sampler_of(mdlm_with(random_table(V, 2, seed=7), 2), Remask, **options).steps(nfe)
    shown = 0.0
    assert len(steps) == nfe and steps[0].alpha_t == 0.0 and steps[-1].alpha_s == 1.0
    for step in steps:
        assert 0.0 <= step.sigma <= 1.0 and 0.0 <= step.reveal <= 1.0 + 1e-12
        shown = shown * (1.0 - step.sigma) + (1.0 - shown) * step.reveal
        assert shown == pytest.approx(step.alpha_s)
    assert nfe < 8 or any(step.sigma > 0 for step in steps)


def test_without_sigma_it_is_the_ancestral_law():
    table = random_table(V, L, seed=8)
    sampler = sampler_of(mdlm_with(table), Remask, eta=0.0)
    law_X = sampler_law(table, step_alphas(token_schedule("linear"), 3), V, L)
    assert chi_square_p(counts_of(sampler.draw(60_000, 3, generator_of(8)).x_NL, V), law_X) > 1e-3


def test_a_loop_that_ends_before_it_begins_is_refused():
    with pytest.raises(UserError, match="off=0.6: the loop ends after it begins, at on=0.4"):
        sampler_of(mdlm_with(random_table(V, L, seed=9)), Remask, kind="loop", on=0.4, off=0.6)
