"""The oracle, and the likelihood of a masked sampler along its paths, against sums over all sequences and all paths."""

import numpy as np
import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.oracle import Oracle, OracleOptions
from harness.diffusion import masked
from harness.diffusion.ancestral import importance_nll
from harness.diffusion.masked import step_alphas
from harness.diffusion.schedules import token_schedule
from harness.errors import BudgetError, UserError
from harness.study.cells import Part
from harness.study.sampling import checked_draw
from harness.tasks.permutation import Permutation
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
    scramble,
    tiny_problem,
)
from tests.kit.toys_exact import enumerated_paths, exact_problem, law_by_paths, table_task

V, L = 3, 3
LINEAR = token_schedule("linear")


def oracle_of(task, schedule: str = "linear") -> Oracle:
    return Oracle(exact_problem(task), OracleOptions(schedule=schedule))


def conditionals_of(table: TableNetwork):
    """A network that is a table, called like a task."""
    return lambda x_NL, known_NL: table(torch.where(known_NL, x_NL, V)).double().log_softmax(-1)


# ---- the sampler ----------------------------------------------------------------------------------------------------
def test_without_the_truth_it_is_refused_in_one_line():
    with pytest.raises(UserError, match="method=oracle needs data with an exact answer; choose data=binsaw, hmm"):
        Oracle(tiny_problem(), OracleOptions())


def test_it_is_not_trained_and_not_swept():
    oracle = oracle_of(table_task(V, L))
    assert oracle.stages() == () and oracle.role == "floor" and not list(oracle.parameters())
    with pytest.raises(UserError, match="temperature=0.5 .* use 1.0"):
        sampler_of(oracle).draw(2, 2, generator_of(0), temperature=0.5)
    with pytest.raises(BudgetError):
        sampler_of(oracle).path_nll(all_sequences(V, L), 0, generator_of(0))


def test_one_step_draws_the_product_of_the_marginals_and_many_approach_the_data():
    task = table_task(V, 4, seed=1)
    oracle = oracle_of(task)
    product_X = torch.einsum("a,b,c,d->abcd", *task.marginal_LV).flatten().numpy()
    with torch.inference_mode():
        one = counts_of(sampler_of(oracle).draw(40_000, 1, generator_of(1)).x_NL, V)
        many = counts_of(sampler_of(oracle).draw(4_000, 80, generator_of(2)).x_NL, V)
    assert chi_square_p(one, product_X) > 1e-3
    assert chi_square_p(one, task.joint_X.numpy()) < 1e-6
    enough = task.joint_X.numpy() * many.sum() > 5
    assert chi_square_p(many[enough], task.joint_X.numpy()[enough]) > 1e-3


@pytest.mark.parametrize(("schedule", "nfe"), [("linear", 2), ("linear", 3), ("cosine", 2)])
def test_samples_follow_the_law_that_its_paths_give(schedule, nfe):
    """Two enumerations agree: over paths, and of masked patterns pushed through each step."""
    task = table_task(V, L, seed=2)
    alphas = step_alphas(token_schedule(schedule), nfe)
    law_X = law_by_paths(task.conditionals, task.x_XL, alphas)
    assert law_X.sum() == pytest.approx(1.0, abs=1e-12)
    patterns_PL = all_sequences(V + 1, L)
    table = TableNetwork(task.conditionals(patterns_PL, patterns_PL != V).clamp(min=-80))
    assert sampler_law(table, alphas, V, L) == pytest.approx(law_X, abs=1e-9)
    with torch.inference_mode():
        drawn = checked_draw(sampler_of(oracle_of(task, schedule)), 40_000, Part(nfe, 1.0), generator_of(3))
    assert chi_square_p(counts_of(drawn.x_NL, V), law_X) > 1e-3


def test_bound_is_the_likelihood():
    task = table_task(V, L, seed=3)
    bound = oracle_of(task).bound(task.x_XL, generator_of(0))
    assert bound.exact and bound.total_B.numpy() == pytest.approx(-np.log(task.joint_X.numpy()), abs=1e-12)


def test_prefixes_that_cannot_be_are_survived():
    """One step of permutations clashes nearly always; what follows must still be drawn."""
    oracle = oracle_of(Permutation(6))
    for nfe in (1, 2, 6):
        with torch.inference_mode():
            drawn = checked_draw(sampler_of(oracle), 500, Part(nfe, 1.0), generator_of(nfe))
        valid = torch.isfinite(oracle.task.log_prob(drawn.x_NL)).double().mean()
        assert 0 <= valid < 0.05 if nfe == 1 else 0.05 < valid < 1


# ---- paths ----------------------------------------------------------------------------------------------------------
def test_one_step_has_one_path_and_its_excess_is_the_total_correlation():
    task = table_task(V, 4, seed=4)
    nll_X = sampler_of(oracle_of(task)).path_nll(task.x_XL, 1, generator_of(0))
    gap = (task.joint_X * (nll_X + task.log_prob(task.x_XL))).sum().item()
    assert nll_X.dtype == torch.float64 and gap == pytest.approx(task.exact.total_correlation, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic"])
@pytest.mark.parametrize("method", ["oracle", "mdlm"])
def test_paths_are_those_of_the_enumeration_with_their_probabilities(method, schedule):
    """Every value is that of some path; the mean of exp(-nll) is q_K(x), for each x and both methods."""
    alphas = step_alphas(token_schedule(schedule), 2)
    if method == "oracle":
        task = table_task(V, L, seed=5)
        model, conditionals = oracle_of(task, schedule), task.conditionals
    else:
        table = random_table(V, L, seed=5)
        model, conditionals = MDLM(tiny_problem(V, L), MDLMOptions(schedule=schedule)), conditionals_of(table)
        model.network = table
    x_XL, copies = all_sequences(V, L)[::4], 4000
    with torch.inference_mode():
        nll_CX = sampler_of(model).path_nll(x_XL.repeat(copies, 1), 2, generator_of(6)).view(copies, -1)
    for x_L, nll_C in zip(x_XL, nll_CX.T, strict=True):
        probability, values = enumerated_paths(conditionals, x_L, alphas)
        nearest = np.abs(nll_C.numpy()[:, None] - values).min(1)
        assert nearest.max() < 1e-5
        q, (mean, se) = (probability * np.exp(-values)).sum(), mean_and_se(torch.exp(-nll_C))
        assert abs(mean - q) < 4.5 * se and se < 0.05 * q
        mean, se = mean_and_se(nll_C)
        assert abs(mean - probability @ values) < 4.5 * se


def mean_and_se(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def test_importance_weights_by_hand():
    nll_MN = torch.tensor([[1.0, 2.0], [3.0, 2.0]], dtype=torch.float64)
    by_hand = -np.log((np.exp(-1) + np.exp(-3)) / 2)
    assert importance_nll(nll_MN).tolist() == pytest.approx([by_hand, 2.0], abs=1e-12)
    assert importance_nll(nll_MN[:1]).tolist() == [1.0, 2.0]
    assert importance_nll(nll_MN + 1e4).tolist() == pytest.approx([1e4 + by_hand, 1e4 + 2.0], abs=1e-9)


def test_more_paths_tighten_the_bound_towards_the_sampler_s_law():
    task = table_task(V, L, seed=7)
    oracle, p_X = oracle_of(task), task.joint_X.numpy()
    exact = -p_X @ np.log(law_by_paths(task.conditionals, task.x_XL, step_alphas(LINEAR, 2)))
    nll_MRX = torch.stack([
        sampler_of(oracle).path_nll(task.x_XL.repeat(300, 1), 2, generator_of(100 + m)).view(300, -1) for m in range(16)
    ])  # fmt: skip
    bounds = {m: (importance_nll(nll_MRX[:m]).numpy() @ p_X) for m in (1, 4, 16)}
    mean = {m: v.mean() for m, v in bounds.items()}
    error = {m: v.std(ddof=1) / 300**0.5 for m, v in bounds.items()}
    assert mean[1] > mean[4] + 4 * error[4] and mean[4] > mean[16] + 4 * error[16]
    assert mean[16] > exact - 4 * error[16] and mean[16] - exact < 0.2 * (mean[1] - exact)


# ---- MDLM shares the sampler ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("nfe", [1, 3, 8])
def test_mdlm_draws_what_its_steps_written_out_draw(nfe):
    """To the bit, and with the generator left in the same state."""
    torch.manual_seed(0)
    method = scramble(MDLM(tiny_problem(), MDLMOptions(time_conditioning=True)))
    ours, theirs = generator_of(nfe), generator_of(nfe)
    with torch.inference_mode():
        drawn = sampler_of(method).draw(20, nfe, ours, 0.8)
        x_NL, alphas = torch.full((20, 8), 7), step_alphas(LINEAR, nfe)
        for k in range(nfe):
            flips_NL = masked.choose_flips(x_NL == 7, alphas[k], alphas[k + 1], theirs)
            logits_MV = method.network(x_NL, flips_NL, torch.full((20,), 1.0 - k / nfe))
            x_NL[flips_NL], _ = masked.draw_tokens(logits_MV, theirs, 0.8)
    assert torch.equal(drawn.x_NL, x_NL) and torch.equal(ours.get_state(), theirs.get_state())
