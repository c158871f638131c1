"""Bounds and samplers of FUJI and SEQ in worlds where log p(x) is known, with networks that are closed forms.

A `LatentWorld` has x ~ joint and z0 | x ~ N(mean_x, s^2); its exact posterior is the perfect network, and with it the
bound must be -log p(x) for every x, whatever the path and the schedules, but for the stated price of ending above 0.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from harness.diffusion.masked import step_alphas
from harness.diffusion.schedules import token_schedule
from lddm import gaussian
from lddm.fuji import FUJI, FUJIOptions
from lddm.gaussian import LatentSchedule
from lddm.seq import SEQ, SEQOptions
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    bound_by_x,
    chi_square_p,
    counts_of,
    exact_table,
    generator_of,
    index_of,
    one_thread,  # noqa: F401
    random_joint,
    sampler_law,
    sampler_of,
    tiny_problem,
)
from tests.kit.toys_latent import GaussianPrior, LatentWorld, LinearDecoder, WorldEncoder, WorldJoint, WorldPrior

V, L, NOISE = 3, 2, 0.4
#: Nats that a bound may lie above -log p(x) with perfect networks: the latent ends at sigma / a = 0.1 s, so that
#: p(z0 | z_end) is wider than the truth by at most 1/2 log(1 + 0.1^2) in the mean.
END_GAP = 0.5 * math.log1p(gaussian.END_RATIO**2) + 1e-3


@pytest.fixture(scope="module")
def world() -> LatentWorld:
    """A random law; the latent's mean is a function of the whole sequence, standardised under the law."""
    joint_X = random_joint(V, L, seed=0, spread=1.0)
    mean_X = np.random.default_rng(1).normal(size=V**L)
    mean_X = mean_X - joint_X @ mean_X
    return LatentWorld(joint_X, mean_X / math.sqrt(joint_X @ mean_X**2), NOISE, V, L)


def fuji_in(world: LatentWorld, blind: bool = False, **options) -> FUJI:
    options = {"slots": 1, "dims": 1, "prediction": "x0", "encoder_noise": NOISE} | options
    method = FUJI(tiny_problem(V, L), FUJIOptions(**options))
    method.encoder, method.network = WorldEncoder(world), WorldJoint(world, method.latent_schedule, blind)
    return method.eval()


def seq_in(world: LatentWorld, blind: bool = False, **options) -> SEQ:
    options = {"slots": 1, "dims": 1, "prediction": "x0", "encoder_noise": NOISE} | options
    method = SEQ(tiny_problem(V, L), SEQOptions(**options))
    method.encoder, method.decoder = WorldEncoder(world), WorldJoint(world, method.latent_schedule, blind)
    method.prior = WorldPrior(world, method.latent_schedule)
    return method.eval()


def mean_over_law(world: LatentWorld, mean_X: np.ndarray, se_X: np.ndarray) -> tuple[float, float]:
    p = world.joint_X.numpy()
    return float(p @ mean_X), float(np.sqrt(p**2 @ se_X**2))


def entropy_of(world: LatentWorld) -> float:
    return float(-(world.joint_X * world.joint_X.log()).sum())


CASES = [
    (fuji_in, {}),
    (fuji_in, {"lead": 1.0}),
    (fuji_in, {"lead": 0.5, "schedule": "cosine"}),
    (fuji_in, {"lead": 3.0, "latent_shift": 3.0}),
    (seq_in, {}),
    (seq_in, {"schedule": "cosine", "latent_shift": 3.0}),
]


@pytest.mark.parametrize(("build", "options"), CASES)
def test_a_perfect_network_makes_the_bound_the_log_likelihood(world, build, options):
    mean_X, se_X = bound_by_x(build(world, **options), world.x_XL, copies=300, repeats=40)
    excess_X = mean_X + world.joint_X.log().numpy()
    # For one x the price of the end can have either sign (a narrow true posterior of z0, a wide stated one).
    assert (excess_X < 4 * se_X + 0.02).all()
    assert (excess_X > -4 * se_X - 0.02).all()
    total, se = mean_over_law(world, mean_X, se_X)
    assert entropy_of(world) - 4 * se <= total <= entropy_of(world) + END_GAP + 4 * se
    assert se < 0.05, "too noisy to tell"


@pytest.mark.parametrize("build", [fuji_in, seq_in])
def test_the_check_fails_for_a_token_half_that_ignores_the_latent(world, build):
    """It pays the latent's nats and gets nothing back: more than a tenth of a nat above the entropy."""
    mean_X, se_X = bound_by_x(build(world, blind=True), world.x_XL, copies=300, repeats=40)
    total, se = mean_over_law(world, mean_X, se_X)
    assert total > entropy_of(world) + 0.1 + 4 * se


@pytest.mark.parametrize("build", [fuji_in, seq_in])
def test_parts_of_the_bound_sum_to_it_and_have_their_known_values(world, build):
    method = build(world)
    bound = method.bound(world.x_XL.repeat(50, 1), generator_of(2))
    assert not bound.exact and "latent" in bound.estimator
    assert set(bound.parts_B) == {"encoder", "latent_ends", "latent", "tokens"}
    assert torch.allclose(sum(bound.parts_B.values()), bound.total_B)
    known = -0.5 * math.log(2 * math.pi * math.e * NOISE**2)
    assert bound.parts_B["encoder"].tolist() == pytest.approx([known] * (50 * V**L))
    assert (bound.parts_B["tokens"] >= 0).all() and (bound.parts_B["latent"] >= 0).all()


@pytest.mark.parametrize("lead", [0.5, 1.0, 2.0])
def test_fuji_calls_its_network_on_its_path_only(world, lead):
    method = fuji_in(world, lead=lead)
    method.bound(world.x_XL, generator_of(3))
    sampler_of(method).draw(5, 4, generator_of(4))
    assert len(method.network.seen) == 2 + 4
    for t_x, t_z in method.network.seen:
        assert torch.allclose(t_z.double(), t_x.double() ** lead, atol=1e-6)


# ---- SEQ against quadrature over the latent -------------------------------------------------------------------------
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_seq_bound_is_log_p_plus_the_kl_of_its_encoder(prediction):
    """Prior N(0, 1 + s^2), tokens independent given z: log p(x) and the gap KL(q || p(z | x)) by quadrature."""
    s, generator = 0.5, generator_of(5)
    decoder = LinearDecoder(torch.randn(L, V, generator=generator), 0.5 * torch.randn(L, V, generator=generator))
    x_XL = all_sequences(V, L)
    world = LatentWorld(np.full(V**L, 1 / V**L), np.linspace(-1.5, 1.5, V**L), s, V, L)
    method = SEQ(tiny_problem(V, L), SEQOptions(slots=1, dims=1, encoder_noise=s, prediction=prediction))
    method.encoder, method.decoder = WorldEncoder(world), decoder
    var = 1 + s**2
    exact_z0 = GaussianPrior(var, method.latent_schedule)
    method.prior = exact_z0 if prediction == "x0" else AsV(exact_z0, method.latent_schedule)
    mean_X, se_X = bound_by_x(method, x_XL, copies=400, repeats=40)

    z_Q = np.linspace(-9, 9, 6001)
    log_z = -0.5 * z_Q**2 / var - 0.5 * math.log(2 * math.pi * var)
    log_x_QLV = decoder.log_p(torch.from_numpy(z_Q)).numpy()
    for x_L, value, se, mu in zip(x_XL.tolist(), mean_X, se_X, world.mean_X.tolist(), strict=True):
        log_joint = log_z + sum(log_x_QLV[:, i, token] for i, token in enumerate(x_L))
        log_p = math.log(integrate.simpson(np.exp(log_joint), x=z_Q))
        log_q = -0.5 * ((z_Q - mu) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
        kl = integrate.simpson(np.exp(log_q) * (log_q - (log_joint - log_p)), x=z_Q)
        assert kl > 0
        assert value > -log_p - 4 * se, "a bound lies above"
        assert value == pytest.approx(-log_p + kl, abs=4 * se + 0.01)
    assert np.median(se_X) < 0.1, "too noisy to tell"


class AsV(torch.nn.Module):
    """The same prediction given as v = (a z_t - z0) / sigma."""

    def __init__(self, z0_network: torch.nn.Module, schedule: LatentSchedule) -> None:
        super().__init__()
        self.z0_network, self.schedule = z0_network, schedule

    def forward(self, z_BSD, t_B, previous_BSD=None):
        a, sigma = self.schedule.a(t_B).view(-1, 1, 1), self.schedule.sigma(t_B).view(-1, 1, 1)
        return (a * z_BSD - self.z0_network(z_BSD, t_B)) / sigma


# ---- samplers -------------------------------------------------------------------------------------------------------
def test_one_fuji_call_draws_the_product_of_marginals(world):
    joint_VV = world.joint_X.numpy().reshape(V, V)
    product_X = np.outer(joint_VV.sum(1), joint_VV.sum(0)).ravel()
    draw = sampler_of(fuji_in(world)).draw(60_000, 1, generator_of(6))
    assert chi_square_p(counts_of(draw.x_NL, V), product_X) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("build", "nfe"), [(fuji_in, 192), (seq_in, 192)])
def test_many_perfect_steps_draw_the_law(world, build, nfe, eta):
    """Total variation from the law below 0.02: what is left is the discretisation and 20,000 draws' noise (0.008)."""
    draw = sampler_of(build(world, latent_shift=1.0), eta=eta).draw(20_000, nfe, generator_of(7))
    frequencies = counts_of(draw.x_NL, V) / 20_000
    assert 0.5 * np.abs(frequencies - world.joint_X.numpy()).sum() < 0.02
    assert draw.nfe == nfe


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("build", [fuji_in, seq_in])
def test_the_last_step_ends_at_exactly_alpha_1(world, build, schedule, monkeypatch):
    """Otherwise a position is left masked with a small probability, and no test of few samples would see it."""
    from harness.diffusion import masked

    ends, choose = [], masked.choose_flips
    monkeypatch.setattr(masked, "choose_flips", lambda m, a_t, a_s, g: (ends.append(a_s), choose(m, a_t, a_s, g))[1])
    sampler_of(build(world, schedule=schedule)).draw(4, 6, generator_of(8))
    assert ends[-1] == 1.0


@pytest.mark.parametrize("build", [fuji_in, seq_in])
def test_a_network_blind_to_the_latent_is_mdlm(world, build):
    """The token channel alone must follow the factorised sampler's law: FUJI's K steps, or the K_x steps of SEQ."""
    table: TableNetwork = exact_table(world.joint_X.numpy(), V, L)
    method = build(world, blind=True)
    draw = sampler_of(method).draw(60_000, 4, generator_of(9))
    law_X = sampler_law(table, step_alphas(token_schedule("linear"), draw.nfe_token), V, L)
    assert chi_square_p(counts_of(draw.x_NL, V), law_X) > 1e-3
    assert (draw.nfe_latent, draw.nfe_token) == ((0, 4) if build is fuji_in else (2, 2))


def test_one_latent_call_cannot_help_and_several_can(world):
    """With K_z = 1 the latent is the mean of z0, whatever the tokens do (one token call): worse than K_z = 63."""
    distances = {}
    for latent_calls in (1, 63):
        sampler = sampler_of(seq_in(world), latent_share=latent_calls / (latent_calls + 1))
        draw = sampler.draw(20_000, latent_calls + 1, generator_of(10))
        assert (draw.nfe_latent, draw.nfe_token) == (latent_calls, 1)
        frequencies = counts_of(draw.x_NL, V) / 20_000
        distances[latent_calls] = 0.5 * np.abs(frequencies - world.joint_X.numpy()).sum()
    assert distances[63] < 0.5 * distances[1]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_self_conditioning_passes_the_last_estimate_on_only_where_it_was_trained(world, share):
    method, calls = seq_in(world, self_conditioning=share), []
    method.prior.register_forward_hook(lambda module, inputs, out: calls.append((inputs[2], out)))
    sampler_of(method).draw(3, 8, generator_of(20))
    assert len(calls) == 4 and calls[0][0] is None
    for (previous, _), (_, last) in zip(calls[1:], calls, strict=False):
        assert (previous is None) if share == 0.0 else torch.equal(previous, last)


def test_index_of_matches_the_order_of_all_sequences():
    assert index_of(all_sequences(V, 3), V).tolist() == list(range(V**3))
