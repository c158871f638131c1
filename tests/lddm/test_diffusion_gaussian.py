"""The Gaussian process against Bayes' rule, and its bound against the exact cross-entropy of Gaussian data."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from lddm import gaussian
from lddm.gaussian import LatentSchedule
from tests.kit.toys import generator_of, monte_carlo, one_thread  # noqa: F401
from tests.kit.toys_latent import GaussianPrior

SCHEDULES = [LatentSchedule(), LatentSchedule(3.0)]


def at(schedule: LatentSchedule, t: float) -> tuple[float, float]:
    t = torch.tensor(t, dtype=torch.float64)
    return schedule.a(t).item(), schedule.sigma(t).item()


def normal(shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator_of(seed), dtype=torch.float64)


# ---- forward draw and conversions -----------------------------------------------------------------------------------
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_diffuse_has_mean_a_z0_and_variance_sigma_squared(schedule):
    n, t = 200_000, 0.37
    a, sigma = at(schedule, t)
    z0 = torch.tensor([2.0, -1.0], dtype=torch.float64).view(1, 2, 1).expand(n, -1, -1)
    zt = gaussian.diffuse(z0, torch.full((n,), t), schedule, normal(z0.shape, 0))
    assert zt.mean(0).flatten().tolist() == pytest.approx([2 * a, -a], abs=4 * sigma / math.sqrt(n))
    assert zt.var(0).flatten().tolist() == pytest.approx([sigma**2] * 2, rel=4 * math.sqrt(2 / n))


def test_each_sequence_is_diffused_to_its_own_time():
    schedule, z0, noise = SCHEDULES[0], normal((3, 2, 4), 1), normal((3, 2, 4), 2)
    t_B = torch.tensor([0.0, 0.4, 1.0])
    zt = gaussian.diffuse(z0, t_B, schedule, noise)
    a, sigma = at(schedule, float(t_B[1]))
    assert torch.allclose(zt[0], z0[0])
    assert torch.allclose(zt[1], a * z0[1] + sigma * noise[1])
    assert torch.allclose(zt[2], noise[2], atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_z0_of_v_inverts_v(schedule):
    t_B = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    z0, eps = normal((9, 3, 2), 3), normal((9, 3, 2), 4)
    a, sigma = schedule.a(t_B).view(-1, 1, 1), schedule.sigma(t_B).view(-1, 1, 1)
    zt = gaussian.diffuse(z0, t_B, schedule, eps)
    assert torch.allclose(gaussian.z0_of_v(a * eps - sigma * z0, zt, t_B, schedule), z0, atol=1e-12)


# ---- the reverse step -----------------------------------------------------------------------------------------------
def bayes(schedule, t: float, s: float, zt: float, z0: float) -> tuple[float, float]:
    """Mean and variance of q(z_s | z_t, z0) from the joint Gaussian of (z_s, z_t) given z0, in numpy."""
    (a_t, sig_t), (a_s, sig_s) = at(schedule, t), at(schedule, s)
    r = a_t / a_s
    covariance = np.array([[sig_s**2, r * sig_s**2], [r * sig_s**2, sig_t**2]])
    gain = covariance[0, 1] / covariance[1, 1]
    return a_s * z0 + gain * (zt - a_t * z0), covariance[0, 0] - gain * covariance[0, 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.8, 0.3), (0.2, 0.1), (0.5, 0.01)])
def test_ancestral_step_is_the_posterior_of_the_forward_process(schedule, t, s):
    n, zt, z0 = 200_000, 0.7, -1.3
    mean, var = bayes(schedule, t, s, zt, z0)
    shape = (n, 1, 1)
    zs = gaussian.latent_step(
        torch.full(shape, zt, dtype=torch.float64), torch.full(shape, z0, dtype=torch.float64),
        t, s, schedule, 1.0, generator_of(5),
    )  # fmt: skip
    assert zs.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(var / n))
    assert zs.var().item() == pytest.approx(var, rel=4 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.6, 0.3), (0.3, 0.299)])
def test_ddim_step_is_deterministic_and_follows_the_true_noise(schedule, t, s):
    z0, eps = normal((4, 2, 3), 6), normal((4, 2, 3), 7)
    zt = gaussian.diffuse(z0, torch.full((4,), t, dtype=torch.float64), schedule, eps)
    first, second = (gaussian.latent_step(zt, z0, t, s, schedule, 0.0, generator_of(k)) for k in (0, 1))
    a_s, sig_s = at(schedule, s)
    assert torch.equal(first, second)
    assert torch.allclose(first, a_s * z0 + sig_s * eps, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_eta_keeps_the_marginal_where_the_prediction_is_true(eta):
    """z_s given z0 must be N(a_s z0, sigma_s^2) for all eta, when z_t was (DDIM, lemma 1)."""
    n, schedule, t, s = 200_000, SCHEDULES[0], 0.7, 0.4
    z0 = torch.full((n, 1, 1), 1.5, dtype=torch.float64)
    zt = gaussian.diffuse(z0, torch.full((n,), t, dtype=torch.float64), schedule, normal(z0.shape, 8))
    zs = gaussian.latent_step(zt, z0, t, s, schedule, eta, generator_of(9))
    a_s, sig_s = at(schedule, s)
    assert zs.mean().item() == pytest.approx(a_s * 1.5, abs=4 * sig_s / math.sqrt(n))
    assert zs.var().item() == pytest.approx(sig_s**2, rel=4 * math.sqrt(2 / n))


def test_the_step_to_data_returns_the_prediction():
    z0 = normal((2, 1, 1), 10)
    for t in (1.0, 0.3):
        assert torch.equal(
            gaussian.latent_step(normal((2, 1, 1), 11), z0, t, 0.0, SCHEDULES[0], 1.0, generator_of(0)), z0
        )


def chain(steps: int, eta: float, schedule, mean: float, var: float, n: int) -> torch.Tensor:
    """Samples of a whole reverse process with the exact denoiser of N(mean, var)."""
    denoise, generator = GaussianPrior(var, schedule, mean), generator_of(12)
    z = torch.randn((n, 1, 1), generator=generator, dtype=torch.float64)
    for k in range(steps, 0, -1):
        z0_hat = denoise(z, torch.full((n,), k / steps, dtype=torch.float64))
        z = gaussian.latent_step(z, z0_hat, k / steps, (k - 1) / steps, schedule, eta, generator)
    return z


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_exact_steps_draw_the_data_law_and_one_step_draws_its_mean(schedule, eta):
    n, mean, var = 20_000, 0.8, 0.49
    z = chain(512, eta, schedule, mean, var, n)
    assert z.mean().item() == pytest.approx(mean, abs=0.02)
    assert z.var().item() == pytest.approx(var, rel=0.05)
    # One step from noise: no variance is left, and the few-step variance is too small, which is why K_z = 1 fails.
    assert torch.allclose(chain(1, eta, schedule, mean, var, 100), torch.tensor(mean, dtype=torch.float64), atol=1e-9)
    assert chain(3, eta, schedule, mean, var, n).var() < z.var()


# ---- the bound ------------------------------------------------------------------------------------------------------
def exact_terms(schedule, noise: float, var: float) -> tuple[float, float]:
    """Expected diffusion and endpoint terms for z0 ~ N(0, var) with the optimal denoiser, one coordinate, nats.

    E||z0 - z0_hat||^2 = var / (1 + var SNR), so half the integral of SNR times it over log-SNR is half of
    log(1 + var SNR) between the ends.
    """
    last, first = gaussian._end_log_snrs(schedule, noise)
    diffusion = 0.5 * (math.log1p(var * math.exp(last)) - math.log1p(var * math.exp(first)))
    a2 = 1 / (1 + math.exp(-first))
    ends = 0.5 * (math.log(2 * math.pi) + 1 - last) + 0.5 * (a2 * var - a2 - math.log(1 - a2))
    return diffusion, ends


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("noise", "var"), [(0.5, 1.25), (0.1, 1.01), (0.3, 0.2)])
def test_bound_of_gaussian_data_is_its_cross_entropy_but_for_the_end(schedule, noise, var):
    """Total = -E log N(z0; 0, var) + 1/2 log(1 + (0.1 noise)^2 / var), the price of ending above 0, to 1e-4."""
    dims, copies = 3, 2000
    values = []
    for r in range(40):
        generator = generator_of(100 + r)
        z0 = math.sqrt(var) * torch.randn((copies, 1, dims), generator=generator, dtype=torch.float64)
        t_B, span = gaussian.bound_times(copies, schedule, noise, generator)
        zt = gaussian.diffuse(z0, t_B, schedule, torch.randn(z0.shape, generator=generator, dtype=torch.float64))
        term_B = gaussian.diffusion_term(z0, GaussianPrior(var, schedule)(zt, t_B), t_B, span, schedule)
        values.append((term_B.mean().item(), gaussian.endpoint_terms(z0, schedule, noise).mean().item()))
    (diffusion, ends), (se_diffusion, se_ends) = monte_carlo(values)
    exact_diffusion, exact_ends = (dims * value for value in exact_terms(schedule, noise, var))
    assert diffusion == pytest.approx(exact_diffusion, abs=4 * se_diffusion)
    assert ends == pytest.approx(exact_ends, abs=4 * se_ends)

    entropy = 0.5 * dims * math.log(2 * math.pi * math.e * var)
    gap = exact_diffusion + exact_ends - entropy
    assert gap == pytest.approx(0.5 * dims * math.log1p((gaussian.END_RATIO * noise) ** 2 / var), abs=1e-4)
    assert 0 < gap < 0.005 * dims * max(1.0, noise**2 / var)


def test_a_worse_denoiser_pays_for_it():
    schedule, var, n = SCHEDULES[0], 1.0, 20_000
    generator = generator_of(13)
    z0 = torch.randn((n, 1, 1), generator=generator, dtype=torch.float64)
    t_B, span = gaussian.bound_times(n, schedule, 0.5, generator)
    zt = gaussian.diffuse(z0, t_B, schedule, torch.randn(z0.shape, generator=generator, dtype=torch.float64))
    costs = [
        gaussian.diffusion_term(z0, GaussianPrior(v, schedule)(zt, t_B), t_B, span, schedule).mean().item()
        for v in (var, 0.5, 4.0)
    ]
    assert costs[0] < min(costs[1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bound_times_cover_log_snr_evenly_between_the_stated_ends(schedule):
    noise = 0.5
    t_B, span = gaussian.bound_times(1000, schedule, noise, generator_of(14))
    snr = schedule.log_snr(t_B).sort().values
    last, first = gaussian._end_log_snrs(schedule, noise)
    assert span == pytest.approx(last - first)
    assert last == pytest.approx(-2 * math.log(0.1 * noise)), "sigma / a = 0.1 s at the data end"
    assert snr[0] >= first and snr[-1] <= last
    assert torch.allclose(snr.diff(), torch.full((999,), span / 1000, dtype=torch.float64), atol=1e-8)


def test_diffusion_term_is_the_integrand_over_the_density_of_its_times():
    """By quadrature over log-SNR instead of draws, for a fixed z0 and a denoiser that always says 0."""
    schedule, noise, z0 = SCHEDULES[0], 0.5, 1.7
    last, first = gaussian._end_log_snrs(schedule, noise)
    exact, _ = integrate.quad(lambda u: 0.5 * math.exp(u) * z0**2, first, last)
    z_BSD = torch.full((400, 1, 1), z0, dtype=torch.float64)
    draws = []
    for r in range(50):
        t_B, span = gaussian.bound_times(400, schedule, noise, generator_of(200 + r))
        draws.append(gaussian.diffusion_term(z_BSD, torch.zeros_like(z_BSD), t_B, span, schedule).mean().item())
    mean, se = monte_carlo(draws)
    assert exact == pytest.approx(mean, abs=4 * se)


def test_encoder_negentropy_is_the_expected_log_density():
    noise, dims, n = 0.4, 6, 200_000
    eps = normal((n, dims), 15)
    log_q = -0.5 * (eps**2).sum(1) - dims * math.log(noise * math.sqrt(2 * math.pi))
    value = gaussian.encoder_negentropy(dims, noise)
    assert value == pytest.approx(-0.5 * dims * math.log(2 * math.pi * math.e * noise**2))
    assert log_q.mean().item() == pytest.approx(value, abs=4 * math.sqrt(dims / 2 / n))


def test_prior_term_is_the_kl_between_gaussians():
    """KL(N(a z0, sigma^2) || N(0, 1)) at t_max by quadrature, added to the closed entropy at the data end."""
    schedule, noise, z0 = LatentSchedule(0.01), 0.5, 1.1  # a small shift leaves signal at t_max
    last, first = gaussian._end_log_snrs(schedule, noise)
    a, sigma = at(schedule, gaussian.T_MAX)
    assert a > 0.05
    log_q = lambda z: -0.5 * ((z - a * z0) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)  # noqa: E731
    log_p = lambda z: -0.5 * z**2 - 0.5 * math.log(2 * math.pi)  # noqa: E731
    kl, _ = integrate.quad(lambda z: math.exp(log_q(z)) * (log_q(z) - log_p(z)), -12, 12)
    terms = gaussian.endpoint_terms(torch.full((1, 1, 1), z0), schedule, noise).item()
    assert terms - 0.5 * (math.log(2 * math.pi) + 1 - last) == pytest.approx(kl, abs=1e-6)
