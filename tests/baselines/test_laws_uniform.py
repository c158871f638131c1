"""Uniform-state diffusion against enumeration: bound, posterior, law of its sampler, and the Gaussian that it stands for."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.samplers.uniform import Uniform
from baselines.udlm import UDLM, UDLMOptions
from harness.diffusion import uniform
from harness.diffusion.masked import step_alphas
from harness.diffusion.schedules import token_schedule
from harness.nn.slices import Logits
from tests.kit.toys import (
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    generator_of,
    one_thread,  # noqa: F401
    random_joint,
    sampler_of,
    tiny_problem,
)

V, L = 3, 2


def noisy(x_XL: np.ndarray, z_L, alpha: float, left_out: int | None = None) -> np.ndarray:
    """q(z | x) for each x, (X,), of all positions but one."""
    places = [i for i in range(len(z_L)) if i != left_out]
    return np.prod([np.where(x_XL[:, i] == z_L[i], alpha, 0.0) + (1 - alpha) / V for i in places], axis=0)


class ExactLeaveOneOut(nn.Module):
    """log p(x_i | z without z_i, t) of a law (X,), by enumeration; with `own` of its posterior given z_i too."""

    def __init__(self, joint_X: np.ndarray, own: bool = False, schedule: str = "linear") -> None:
        super().__init__()
        self.joint_X, self.own, self.schedule = joint_X, own, token_schedule(schedule)
        self.x_XL = all_sequences(V, L).numpy()

    def table(self, z_L, alpha: float) -> np.ndarray:
        p = np.zeros((L, V))
        for i in range(L):
            weight_X = self.joint_X * noisy(self.x_XL, z_L, alpha, None if self.own else i)
            p[i] = np.bincount(self.x_XL[:, i], weights=weight_X, minlength=V) / weight_X.sum()
        return p

    def forward(self, z_BL: Tensor, select_BL: Tensor | None, t_B: Tensor) -> Logits:
        alpha_B = self.schedule.alpha(t_B).clamp(1e-9, 1 - 1e-9).numpy()
        # The same for a whole batch where all have one time.
        zs, place = np.unique(np.column_stack((z_BL.numpy(), alpha_B)), axis=0, return_inverse=True)
        p = np.array([self.table(z[:L].astype(int), z[L]) for z in zs])[place.ravel()]
        return Logits.of(torch.from_numpy(np.log(p)).flatten(0, 1))


def udlm_with(network: nn.Module, **options) -> UDLM:
    method = UDLM(tiny_problem(V, L), UDLMOptions(**options)).eval()
    method.network = network
    return method


# ---- the bound ------------------------------------------------------------------------------------------------------
def nelbo_by_quadrature(network: ExactLeaveOneOut) -> np.ndarray:
    """The bound of each x, (X,): over all z and, with t = u^3 for the logarithm at 0, over Gauss-Legendre nodes of time."""
    x_XL = all_sequences(V, L)
    node_Q, weight_Q = np.polynomial.legendre.leggauss(60)
    total_X = np.zeros(len(x_XL))
    for u, weight in zip(0.5 * (node_Q + 1), 0.5 * weight_Q, strict=True):
        t, alpha = u**3, 1 - u**3
        for z_L in x_XL:
            loo_LV = torch.from_numpy(np.log(network.table(z_L.tolist(), alpha)))
            chance_X = noisy(x_XL.numpy(), z_L.tolist(), alpha)
            for k, x_L in enumerate(x_XL):
                rate_L = uniform.rate_loss(loo_LV, z_L, x_L, torch.full((L,), alpha, dtype=torch.float64))
                total_X[k] += weight * 3 * u**2 / (1 - t) * chance_X[k] * float(rate_L.sum())
    return total_X


def test_with_the_exact_denoiser_the_bound_is_the_log_likelihood():
    """The reverse process is then that of the data, so the NELBO has no gap for any x; its mean is the entropy."""
    joint_X = random_joint(V, L, seed=1)
    assert nelbo_by_quadrature(ExactLeaveOneOut(joint_X)) == pytest.approx(-np.log(joint_X), abs=1e-4)


@pytest.mark.parametrize("own", [False, True], ids=["leave_one_out", "posterior"])
def test_the_reported_bound_is_that_in_the_mean(own):
    """Whichever of the two laws the network gives, as long as it is read as what it is."""
    joint_X = random_joint(V, L, seed=1)
    method = udlm_with(ExactLeaveOneOut(joint_X, own), reads="posterior" if own else "leave_one_out")
    mean_X, se_X = bound_by_x(method, all_sequences(V, L), copies=60, repeats=25)
    assert (np.abs(mean_X + np.log(joint_X)) < 4 * se_X).all()
    assert se_X.max() < 0.2, "its times are where the variance is"


def test_any_other_denoiser_has_a_larger_bound():
    """Another law, and the exact posterior where a leave-one-out law is read."""
    joint_X = random_joint(V, L, seed=1)
    for wrong in (ExactLeaveOneOut(random_joint(V, L, seed=2)), ExactLeaveOneOut(joint_X, own=True)):
        assert joint_X @ nelbo_by_quadrature(wrong) > -(joint_X * np.log(joint_X)).sum() + 0.1


def test_the_rates_loss_is_that_of_the_rates_written_out():
    """Every term `r log(r / s) - r + s` over j other than z, from the two laws at time t."""
    logits, alpha = torch.randn(1, V, generator=generator_of(3)), 0.37
    p = logits[0].double().softmax(-1).numpy()
    for z, x in itertools.product(range(V), repeat=2):
        true, model = alpha * np.eye(V)[x] + (1 - alpha) / V, alpha * p + (1 - alpha) / V
        r, s = true / true[z], model / model[z]
        expected = sum(r[j] * math.log(r[j] / s[j]) - r[j] + s[j] for j in range(V) if j != z) / V
        found = uniform.rate_loss(
            logits.double(), torch.tensor([z]), torch.tensor([x]), torch.tensor([alpha], dtype=torch.float64)
        )
        assert float(found) == pytest.approx(expected, abs=1e-12)


def test_the_denoising_loss_is_least_at_the_exact_leave_one_out_law():
    """A proper score of the posterior that the leave-one-out law makes: the exact one beats others, and is no posterior."""
    joint_X, x_NL = random_joint(V, L, seed=4), all_sequences(V, L)
    batch = x_NL[torch.multinomial(torch.from_numpy(joint_X), 3000, replacement=True, generator=generator_of(4))]

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return float(udlm_with(network).loss(batch, generator_of(5)).total)

    others = [ExactLeaveOneOut(random_joint(V, L, seed=6)), ExactLeaveOneOut(joint_X, own=True)]
    assert loss(ExactLeaveOneOut(joint_X)) < min(map(loss, others)) - 0.01


def rate_loss_in_float64(loo_RV: Tensor, z_R: Tensor, x_R: Tensor, alpha_R: Tensor) -> Tensor:
    """`rate_loss` with plain operations on all symbols, whose gradient is torch's."""
    symbols = loo_RV.shape[1]
    eye_RV = torch.nn.functional.one_hot(x_R, symbols).double()
    a_RV, model_RV = (symbols * alpha_R[:, None] * p + 1 - alpha_R[:, None] for p in (eye_RV, loo_RV.softmax(-1)))
    r_RV, s_RV = (law / law.gather(1, z_R[:, None]) for law in (a_RV, model_RV))
    return (r_RV * (r_RV.log() - s_RV.log()) - r_RV + s_RV).sum(-1) / symbols


def test_the_rates_loss_and_its_gradient_in_float32_are_those_of_float64_within_a_bound():
    """Many symbols, sharp laws, times near both ends; tokens that are noise, right, and neither."""
    symbols, rows = 3000, 300  # several pieces
    loo_RV = 4.0 * torch.randn(rows, symbols, generator=generator_of(11))
    z_R, x_R = torch.randint(symbols, (2, rows), generator=generator_of(12))
    x_R[::3] = z_R[::3]
    loo_RV[torch.arange(0, rows, 2), x_R[::2]] += 12.0
    alpha_R = torch.linspace(1e-6, 1 - 1e-6, rows, dtype=torch.float64)
    values, gradients = [], []
    for loss, dtype in ((uniform.rate_loss, torch.float32), (rate_loss_in_float64, torch.float64)):
        leaf = loo_RV.to(dtype, copy=True).requires_grad_()
        values.append(loss(leaf, z_R, x_R, alpha_R))
        values[-1].sum().backward()
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(*values, rtol=3e-6, atol=3e-6)
    size_R1 = gradients[1].abs().amax(1, keepdim=True)
    assert ((gradients[0] - gradients[1]).abs() <= 1e-5 * size_R1 + 1e-7).all()


# ---- reverse steps --------------------------------------------------------------------------------------------------
def step_law(loo_RV: Tensor, z_R: Tensor, alpha_t: float, alpha_s: float) -> np.ndarray:
    """The law (R, V) of a reverse step by Bayes' rule."""
    stays = alpha_t / alpha_s
    there_RV = alpha_s * loo_RV.double().softmax(-1).numpy() + (1 - alpha_s) / V
    law_RV = there_RV * (stays * np.eye(V)[z_R] + (1 - stays) / V)
    return law_RV / law_RV.sum(-1, keepdims=True)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.3), (0.2, 0.6), (0.7, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_drawn_step_has_the_law_of_the_step(alpha_t, alpha_s, temperature):
    loo_RV = torch.log(torch.tensor([[0.7, 0.25, 0.05]]))
    u_R3 = torch.rand(30_000, 3, dtype=torch.float64, generator=generator_of(13))
    for z in range(V):
        z_R = torch.full((len(u_R3),), z)
        token_R = uniform.draw_step(loo_RV.expand(len(u_R3), V), z_R, u_R3, alpha_t, alpha_s, temperature)
        (law_V,) = step_law(loo_RV / temperature, torch.tensor([z]), alpha_t, alpha_s)
        assert chi_square_p(torch.bincount(token_R, minlength=V).numpy(), law_V) > 1e-3
    with pytest.raises(FloatingPointError, match="not numbers"):
        uniform.draw_step(torch.full((1, V), torch.nan), torch.tensor([0]), u_R3[:1], alpha_t, alpha_s)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.3), (0.2, 0.6), (0.7, 1.0), (0.0, 1.0)])
def test_a_reverse_step_is_bayes_rule(alpha_t, alpha_s):
    """q(z_s_i | z_t) of the data's own process, summed over all x and all z_s elsewhere."""
    joint_X, x_XL = random_joint(V, L, seed=7), all_sequences(V, L).numpy()
    stays = alpha_t / alpha_s
    for z_L in itertools.product(range(V), repeat=L):
        loo = ExactLeaveOneOut(joint_X).table(z_L, alpha_t)
        for i in range(L):
            expected = np.zeros(V)
            for x_L, mass in zip(x_XL, joint_X, strict=True):
                other = noisy(x_L[None], z_L, alpha_t, left_out=i)[0]
                for j in range(V):
                    there = alpha_s * (x_L[i] == j) + (1 - alpha_s) / V
                    expected[j] += mass * other * there * (stays * (z_L[i] == j) + (1 - stays) / V)
            found = step_law(torch.from_numpy(np.log(loo[i : i + 1])), torch.tensor([z_L[i]]), alpha_t, alpha_s)
            assert found[0] == pytest.approx(expected / expected.sum(), abs=1e-9)


def law_of(network: ExactLeaveOneOut, nfe: int, greedy: bool = False) -> np.ndarray:
    """The law (X,) of K steps from uniform tokens, pushed over all z."""
    law, zs = np.full(V**L, V**-L), all_sequences(V, L)
    alphas = step_alphas(token_schedule("linear"), nfe)
    for k, (alpha_t, alpha_s) in enumerate(itertools.pairwise(alphas)):
        after = np.zeros_like(law)
        t_B = torch.full((len(zs),), 1.0 - k / nfe, dtype=torch.float64)
        loo_BLV = network(zs, None, t_B).whole().view(-1, L, V)
        for z_L, mass, loo_LV in zip(zs, law, loo_BLV, strict=True):
            p_LV = step_law(loo_LV, z_L, alpha_t, alpha_s)
            if greedy and alpha_s == 1.0:
                p_LV = np.eye(V)[p_LV.argmax(-1)]
            after += mass * np.array([math.prod(p_LV[i, x_L[i]] for i in range(L)) for x_L in zs.tolist()])
        law = after
    return law


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize("last", ["ancestral", "greedy"])
def test_samples_follow_the_enumerated_law(nfe, last):
    network = ExactLeaveOneOut(random_joint(V, L, seed=8, spread=0.8))
    drawn = sampler_of(udlm_with(network), Uniform, last=last).draw(40_000, nfe, generator_of(8))
    law_X = law_of(network, nfe, last == "greedy")
    kept = law_X > 1e-4
    counts = counts_of(drawn.x_NL, V)
    assert kept.sum() == 1 or chi_square_p(counts[kept], law_X[kept]) > 1e-3
    assert counts[~kept].sum() < 40


def test_many_steps_of_the_exact_denoiser_tend_to_the_data():
    joint_X = random_joint(V, L, seed=9)
    far = [np.abs(law_of(ExactLeaveOneOut(joint_X), k) - joint_X).sum() for k in (1, 4, 16, 64)]
    assert all(a > 1.5 * b for a, b in itertools.pairwise(far)) and far[-1] < 0.05


# ---- Duo's Gaussian -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("symbols", [2, 27])
def test_the_argmax_of_the_gaussian_has_the_law_of_the_uniform_process(symbols):
    x_BL, alpha_B = torch.full((6, 20_000), 1), torch.tensor([0.01, 0.1, 0.3, 0.6, 0.9, 0.99], dtype=torch.float64)
    z_BL, soft_BLV = uniform.lifted(x_BL, alpha_B, symbols, 0.1, generator_of(10))
    for z_L, alpha in zip(z_BL, alpha_B.tolist(), strict=True):
        expected = np.full(symbols, (1 - alpha) / symbols)
        expected[1] += alpha
        assert chi_square_p(torch.bincount(z_L, minlength=symbols).numpy(), expected) > 1e-3
    assert torch.equal(soft_BLV.argmax(-1), z_BL) and torch.allclose(soft_BLV.sum(-1), torch.ones(z_BL.shape))


def test_the_curriculum_sees_softened_noise_and_the_rest_of_training_tokens():
    method, seen = UDLM(tiny_problem(5, 4), UDLMOptions(curriculum=0.25)), []
    method.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for stage in method.stages():
        method.set_stage(stage.name)
        method.loss(torch.zeros(2, 4, dtype=torch.int64), generator_of(0)).total.backward()
    assert [tuple(x.shape) for x in seen] == [(2, 4, 5), (2, 4)] and [s.share for s in method.stages()] == [0.25, 0.75]
    hot = torch.nn.functional.one_hot(seen[1], 5).float()
    same = [method.network(x, None, torch.full((2,), 0.5)).whole() for x in (seen[1], hot)]
    assert torch.allclose(*same), "a law that is a point is its token"
