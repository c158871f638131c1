"""MDLM's bound and sampler against enumeration over all mask patterns of a small alphabet."""

import numpy as np
import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.diffusion.masked import step_alphas
from harness.diffusion.schedules import token_schedule
from tests.kit.toys import (
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    exact_table,
    generator_of,
    index_of,
    nelbo_by_enumeration,
    one_thread,  # noqa: F401
    random_joint,
    random_table,
    sampler_law,
    sampler_of,
    tiny_problem,
)

V = 3
SCHEDULES = ["linear", "cosine", "quadratic"]


def mdlm_with(table, length: int, schedule: str = "linear") -> MDLM:
    method = MDLM(tiny_problem(V, length), MDLMOptions(schedule=schedule))
    method.network = table
    return method


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length", [2, 3])
def test_bound_is_the_enumerated_nelbo_for_every_schedule(schedule, length):
    table, x_XL = random_table(V, length, seed=1), all_sequences(V, length)
    mean_X, se_X = bound_by_x(mdlm_with(table, length, schedule), x_XL, copies=2000, repeats=30)
    exact_X = np.array([nelbo_by_enumeration(table, tuple(x), V) for x in x_XL.tolist()])
    assert (np.abs(mean_X - exact_X) < 4 * se_X).all()
    assert np.median(se_X) < 0.02 * exact_X.min(), "too noisy to tell"


def test_with_exact_conditionals_the_nelbo_is_the_log_likelihood():
    """Every order of the chain rule gives log p(x), so their average does; its mean over the law is the entropy."""
    joint_X = random_joint(V, 3, seed=2)
    table, x_XL = exact_table(joint_X, V, 3), all_sequences(V, 3)
    exact_X = np.array([nelbo_by_enumeration(table, tuple(x), V) for x in x_XL.tolist()])
    assert exact_X == pytest.approx(-np.log(joint_X), abs=1e-5)
    mean_X, se_X = bound_by_x(mdlm_with(table, 3), x_XL, copies=600, repeats=30)
    assert (np.abs(mean_X + np.log(joint_X)) < 4 * se_X).all()
    entropy = -(joint_X * np.log(joint_X)).sum()
    assert joint_X @ mean_X == pytest.approx(entropy, abs=4 * np.sqrt((joint_X**2) @ se_X**2))


def test_any_other_table_has_a_larger_mean_bound():
    joint_X, x_XL = random_joint(V, 2, seed=3), all_sequences(V, 2)
    for seed in range(5):
        wrong = np.array([nelbo_by_enumeration(random_table(V, 2, seed), tuple(x), V) for x in x_XL.tolist()])
        assert joint_X @ wrong > -(joint_X * np.log(joint_X)).sum()


@pytest.mark.parametrize("loss", ["nelbo", "masked_mean"])
def test_both_losses_report_the_bound_per_token_and_train_what_they_say(loss):
    """ "nelbo" trains the bound; "masked_mean" the mean cross-entropy of all masked positions of the batch."""
    table, x_BL, masks = random_table(V, 3, seed=4), all_sequences(V, 3), []
    method = MDLM(tiny_problem(V, 3), MDLMOptions(loss=loss))
    method.network = table
    table.register_forward_pre_hook(lambda module, inputs: masks.append(inputs))
    result, bound = method.loss(x_BL, generator_of(0)), method.bound(x_BL, generator_of(0))
    per_token = bound.total_B.mean().item() / 3
    assert float(result.parts["nelbo_nats_per_token"]) == pytest.approx(per_token, rel=1e-6)
    xt_BL, masked_BL = masks[0][:2]
    assert torch.equal(xt_BL == V, masked_BL)
    log_p = table.logits_PLV[index_of(xt_BL, V + 1)].log_softmax(-1).gather(2, x_BL[:, :, None])[:, :, 0]
    expected = per_token if loss == "nelbo" else -log_p[masked_BL].mean().item()
    assert result.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_samples_follow_the_law_of_the_factorised_sampler(schedule, nfe):
    table, length = random_table(V, 2, seed=5), 2
    law_X = sampler_law(table, step_alphas(token_schedule(schedule), nfe), V, length)
    assert law_X.sum() == pytest.approx(1.0)
    draw = sampler_of(mdlm_with(table, length, schedule)).draw(60_000, nfe, generator_of(6))
    assert chi_square_p(counts_of(draw.x_NL, V), law_X) > 1e-3


def test_many_steps_of_an_exact_denoiser_approach_the_data_and_one_draws_the_marginals():
    joint_X = random_joint(V, 2, seed=7)
    table, joint_VV = exact_table(joint_X, V, 2), joint_X.reshape(V, V)
    product_X = np.outer(joint_VV.sum(1), joint_VV.sum(0)).ravel()
    linear = token_schedule("linear")
    assert sampler_law(table, step_alphas(linear, 1), V, 2) == pytest.approx(product_X, abs=1e-6)
    distances = [
        np.abs(sampler_law(table, step_alphas(linear, k), V, 2) - joint_X).sum() for k in (1, 2, 8, 64)
    ]  # fmt: skip
    assert all(a > 1.5 * b for a, b in zip(distances, distances[1:], strict=False))
    assert distances[-1] < 0.02
    draw = sampler_of(mdlm_with(table, 2)).draw(60_000, 1, generator_of(8))
    assert chi_square_p(counts_of(draw.x_NL, V), product_X) > 1e-3
    assert chi_square_p(counts_of(draw.x_NL, V), joint_X) < 1e-6


def test_temperature_sharpens_every_conditional():
    table, nfe = random_table(V, 2, seed=9), 3
    sharp = type(table)(table.logits_PLV / 0.5)
    law_X = sampler_law(sharp, step_alphas(token_schedule("linear"), nfe), V, 2)
    draw = sampler_of(mdlm_with(table, 2)).draw(60_000, nfe, generator_of(10), temperature=0.5)
    assert chi_square_p(counts_of(draw.x_NL, V), law_X) > 1e-3


def test_steps_that_reveal_nothing_are_calls_all_the_same():
    table = random_table(V, 2, seed=11)
    calls = []
    table.register_forward_pre_hook(lambda module, inputs: calls.append(int(inputs[1].sum())))
    draw = sampler_of(mdlm_with(table, 2)).draw(1, 64, generator_of(12))
    assert (len(calls), sum(calls), draw.nfe) == (64, 2, 64)
    assert int(draw.x_NL.max()) < V


def test_width_factor_widens_to_whole_heads():
    problem = tiny_problem(width=16)
    method = MDLM(problem, MDLMOptions(width_factor=1.4))
    width = method.network.embed.weight.shape[1]
    assert width % (2 * problem.shape.heads) == 0 and abs(width - 1.4 * 16) <= problem.shape.heads
    assert torch.isfinite(method.bound(torch.zeros(2, 8, dtype=torch.int64), generator_of(0)).total_B).all()
