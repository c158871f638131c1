"""The Gaussian latent process: schedule, forward draw, conversions between predictions, DDIM and ancestral steps, its bound.

Times are in [0, 1] (0 data, 1 noise); what the schedule makes of them is computed in float64.

Shapes: B sequences, S latent slots, D latent dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentSchedule:
    """Variance-preserving cosine schedule with a time shift: a = cos(pi u / 2), sigma = sin(pi u / 2),
    u = shift t / (1 + (shift - 1) t). A shift above 1 moves the times to higher noise (Esser et al. 2024, eq. 23).
    """

    shift: float = 1.0

    def warp(self, t: Tensor) -> Tensor:
        """Shifted time u(t)."""
        t = t.double()
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def a(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * self.warp(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * self.warp(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a^2 / sigma^2), decreasing in t."""
        return -2.0 * torch.log(torch.tan(0.5 * math.pi * self.warp(t)))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`."""
        u = torch.atan(torch.exp(-0.5 * log_snr.double())) * (2.0 / math.pi)
        return u / (self.shift - (self.shift - 1.0) * u)


def _expand(v_B: Tensor, like: Tensor) -> Tensor:
    return v_B.to(like.dtype).view(-1, *([1] * (like.dim() - 1)))


def diffuse(z0_BSD: Tensor, t_B: Tensor, schedule: LatentSchedule, noise_BSD: Tensor) -> Tensor:
    """z_t = a(t) z0 + sigma(t) eps."""
    return _expand(schedule.a(t_B), z0_BSD) * z0_BSD + _expand(schedule.sigma(t_B), z0_BSD) * noise_BSD


def z0_of_v(v_BSD: Tensor, zt_BSD: Tensor, t_B: Tensor, schedule: LatentSchedule) -> Tensor:
    """z0 = a z_t - sigma v, where v = a eps - sigma z0 (Salimans & Ho 2022, eq. 13 and appendix D)."""
    return _expand(schedule.a(t_B), zt_BSD) * zt_BSD - _expand(schedule.sigma(t_B), zt_BSD) * v_BSD


def latent_step(
    zt_BSD: Tensor,
    z0_hat_BSD: Tensor,
    t: float,
    s: float,
    schedule: LatentSchedule,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """One reverse step t -> s given a prediction of z0; eta = 0 is DDIM, eta = 1 the ancestral step (DDIM, eq. 12, 16).

    z_s = a_s z0 + sqrt(sigma_s^2 - c^2) eps_hat + c noise, with c = eta times the standard deviation of q(z_s | z_t, z0).
    At s = 0 the step returns the prediction itself.
    """
    pair = torch.tensor([t, s], dtype=torch.float64)
    (a_t, a_s), (sig_t, sig_s) = schedule.a(pair).tolist(), schedule.sigma(pair).tolist()
    if s == 0.0:
        return z0_hat_BSD
    # Variance of z_t given z_s, from a^2 + sigma^2 = 1; then of z_s given z_t and z0 by Bayes' rule.
    forward_var = max(sig_t**2 - (a_t / a_s) ** 2 * sig_s**2, 0.0)
    c = eta * math.sqrt(forward_var) * sig_s / sig_t
    eps_hat = (zt_BSD - a_t * z0_hat_BSD) / sig_t
    z_s = a_s * z0_hat_BSD + math.sqrt(max(sig_s**2 - c**2, 0.0)) * eps_hat
    if c > 0.0:
        z_s = z_s + c * torch.randn(zt_BSD.shape, generator=generator, dtype=zt_BSD.dtype, device=zt_BSD.device)
    return z_s


#: The bound's integral ends where sigma / a is this share of the encoder's noise s, and starts at T_MAX; both ends have
#: closed forms. Any end gives a bound; nearer to 0 only adds draws at times where nothing is left to learn.
END_RATIO, T_MAX = 0.1, 1.0 - 1e-3


def _end_log_snrs(schedule: LatentSchedule, noise: float) -> tuple[float, float]:
    """log-SNR at the data end and at the noise end of the bound."""
    first = float(schedule.log_snr(torch.tensor(T_MAX, dtype=torch.float64)))
    return max(-2.0 * math.log(END_RATIO * noise), first + 1.0), first


def bound_times(count: int, schedule: LatentSchedule, noise: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Times (count,) whose log-SNR is stratified and uniform, and the length of the log-SNR range.

    In log-SNR the integrand SNR ||z0 - z0_hat||^2 stays of order S D, where in t it would grow as 1 / t^3. `noise` is
    the encoder's s.
    """
    last, first = _end_log_snrs(schedule, noise)
    u = torch.rand(1, generator=generator, dtype=torch.float64, device=generator.device)
    u_B = torch.remainder(u + torch.arange(count, device=u.device, dtype=torch.float64) / count, 1.0)
    return schedule.time_of(first + (last - first) * u_B), last - first


def diffusion_term(z0_BSD: Tensor, z0_hat_BSD: Tensor, t_B: Tensor, span: float, schedule: LatentSchedule) -> Tensor:
    """1/2 integral SNR ||z0 - z0_hat||^2 d logSNR, one draw for each sequence (VDM, eq. 15); (B,) nats."""
    error_B = (z0_BSD.double() - z0_hat_BSD.double()).square().flatten(1).sum(1)
    return 0.5 * span * schedule.log_snr(t_B).exp() * error_B


def endpoint_terms(z0_BSD: Tensor, schedule: LatentSchedule, noise: float) -> Tensor:
    """E[-log p(z0 | z_end)] + KL(q(z_tmax | z0) || N(0, I)), (B,) nats, both in closed form.

    p(z0 | z_t) = N(z_t / a, (sigma / a)^2), so its expectation under q(z_t | z0) is a Gaussian's entropy.
    """
    last, first = _end_log_snrs(schedule, noise)
    dims = z0_BSD[0].numel()
    reconstruction = 0.5 * dims * (math.log(2.0 * math.pi) - last + 1.0)  # (sigma / a)^2 = exp(-log SNR)
    a2 = 1.0 / (1.0 + math.exp(-first))
    square_B = z0_BSD.double().square().flatten(1).sum(1)
    prior_kl_B = 0.5 * (dims * ((1.0 - a2) - 1.0 - math.log(1.0 - a2)) + a2 * square_B)
    return reconstruction + prior_kl_B


def encoder_negentropy(dims: int, noise: float) -> float:
    """E_q[log q(z0 | x)] = -(S D / 2) log(2 pi e s^2), nats, for q = N(mu, s^2 I) with S D = `dims`."""
    return -0.5 * dims * math.log(2.0 * math.pi * math.e * noise**2)
