"""The uniform-state process over tokens: noise replaces a token by any symbol, and a reverse step may change each again.

`q(z_t | x) = alpha x + (1 - alpha) / V`. What a network predicts is read as the *leave-one-out* denoiser, the law of the token
given all noisy tokens but its own: `p(z_i = j | the others) = alpha p_loo(j) + (1 - alpha) / V` is then exact, and so are
the rates of the reverse process, ratios of these numbers. The posterior of the token given its own noisy value too is
`p_loo(x) q(z | x)`, made whole.

Shapes: B sequences, L tokens, V symbols, M = B L positions in row-major order, R of them in a slice.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.diffusion import masked

#: Numbers that a core's cache has room for some copies of.
_IN_CACHE = 1 << 17


def corrupt(x_BL: Tensor, alpha_B: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """z_t (B, L): each token kept with probability alpha, else any of the V symbols, its own too."""
    u_BL = torch.rand(x_BL.shape, generator=generator, dtype=torch.float64, device=x_BL.device)
    any_BL = torch.randint(vocab_size, x_BL.shape, generator=generator, device=x_BL.device)
    return torch.where(u_BL < alpha_B.double()[:, None], x_BL, any_BL)


def with_own(logits_RV: Tensor, z_R: Tensor, alpha_R: Tensor) -> Tensor:
    """Logits of the posterior from those of the leave-one-out denoiser: `log q(z | x)` is added, up to a constant."""
    ratio_R = torch.log1p(logits_RV.shape[1] * alpha_R / (1.0 - alpha_R))
    return logits_RV.scatter_add(1, z_R[:, None], ratio_R[:, None].to(logits_RV.dtype))


def without_own(logits_RV: Tensor, z_R: Tensor, alpha_R: Tensor) -> Tensor:
    """The inverse of `with_own`."""
    return logits_RV - with_own(torch.zeros_like(logits_RV), z_R, alpha_R)


def rate_loss(loo_RV: Tensor, z_R: Tensor, x_R: Tensor, alpha_R: Tensor) -> Tensor:
    """The integrand of the continuous-time NELBO over `-alpha' / alpha`, (R,) float64 nats (Schiff et al. 2024).

    `1/V sum_j [r_j log(r_j / s_j) - r_j + s_j]` over the rates of the reverse process from z to j, true and the model's:
    `r_j = a_j / a_z` with `a = V alpha x + 1 - alpha`, and s the same with p_loo in the place of x. Sums over symbols are
    those of the logits' dtype, all else is float64. It can be differentiated once, by the logits.
    """
    V, rest_R = loo_RV.shape[1], 1.0 - alpha_R
    full_R, kept_R = V * alpha_R + rest_R, z_R == x_R
    a_z_R, log_R = torch.where(kept_R, full_R, rest_R), torch.log(full_R / rest_R)
    entropy_R = torch.where(kept_R, -(V - 1) * rest_R / full_R * log_R, full_R / rest_R * log_R)
    cross_R: Tensor = _CrossRates.apply(loo_RV, z_R, x_R, alpha_R, a_z_R)  # type: ignore[no-untyped-call]
    return entropy_R / V + cross_R


class _CrossRates(torch.autograd.Function):
    """What in `rate_loss` depends on the model, `a_z` as there. The gradient is made in the same pass, in pieces that stay in
    a core's cache: as separate operations each would read and write all logits again."""

    @staticmethod
    def forward(ctx: Any, loo_RV: Tensor, *of_R: Tensor) -> Tensor:
        rows = max(1, _IN_CACHE // loo_RV.shape[1])
        ctx.grad_RV = torch.empty_like(loo_RV) if ctx.needs_input_grad[0] else None
        into = itertools.repeat(None) if ctx.grad_RV is None else ctx.grad_RV.split(rows)
        each = zip(loo_RV.split(rows), *(other.split(rows) for other in of_R), into, strict=False)
        return torch.cat([_cross_rates(*piece) for piece in each])

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_RV, ctx.grad_RV = ctx.grad_RV, None  # scaled in place: a second pass has none
        return grad_RV.mul_(grad[0][:, None].to(grad_RV.dtype)), None, None, None, None


def _cross_rates(
    loo_RV: Tensor, z_R: Tensor, x_R: Tensor, alpha_R: Tensor, a_z_R: Tensor, grad_RV: Tensor | None
) -> Tensor:
    """`(V m_z - (1 - alpha) sum_j m_j - V alpha m_x) / (V a_z) + exp(-m_z) - 1 / a_z` with `m = log(V alpha p + 1 - alpha)`,
    (R,) float64; its gradient by the logits goes into `grad_RV`."""
    V, rest_R, at_R2 = loo_RV.shape[1], 1.0 - alpha_R, torch.stack((z_R, x_R), 1)
    p_RV = loo_RV.softmax(-1)
    slope_R1, rest_R1 = ((V * alpha_R)[:, None], rest_R[:, None])
    y_RV = torch.addcmul(rest_R1.to(p_RV.dtype), p_RV, slope_R1.to(p_RV.dtype))
    p_R2 = p_RV.gather(1, at_R2).double()
    y_R2 = slope_R1 * p_R2 + rest_R1
    m_R2 = y_R2.log()
    sum_R = y_RV.log().sum(-1).double()
    cross_R = (m_R2[:, 0] - rest_R / V * sum_R - alpha_R * m_R2[:, 1]) / a_z_R + 1.0 / y_R2[:, 0] - 1.0 / a_z_R
    if grad_RV is None:
        return cross_R
    by_m_R2 = torch.stack((1.0 / a_z_R - 1.0 / y_R2[:, 0], -alpha_R / a_z_R), 1)
    # By p, times p: for all symbols, then for z and x what they have besides.
    step_RV = (p_RV / y_RV).mul_((-rest_R * alpha_R / a_z_R)[:, None].to(p_RV.dtype))
    step_RV.scatter_add_(1, at_R2, (by_m_R2 * slope_R1 * p_R2 / y_R2).to(p_RV.dtype))
    torch.addcmul(step_RV, p_RV, step_RV.sum(-1, keepdim=True), value=-1.0, out=grad_RV)
    return cross_R


def draw_step(
    loo_RV: Tensor, z_R: Tensor, u_R3: Tensor, alpha_t: float, alpha_s: float, temperature: float = 1.0
) -> Tensor:
    """Tokens (R,) of a reverse step, exact for the exact denoiser; three uniforms in float64 are all its chance.

    By Bayes' rule `p(z_s) ~ (alpha_s p_loo + (1 - alpha_s) / V) (a [z_s = z_t] + (1 - a) / V)` with `a = alpha_t / alpha_s`: a
    mixture of staying, of a draw from p_loo and of any symbol, so that few rows need more of their law than its sum.
    """
    V, stays = loo_RV.shape[1], alpha_t / alpha_s
    loo_RV = loo_RV.to(u_R3.dtype) / temperature
    there_R = alpha_s * (loo_RV.gather(1, z_R[:, None])[:, 0] - loo_RV.logsumexp(-1)).exp() + (1.0 - alpha_s) / V
    if not there_R.isfinite().all():
        raise FloatingPointError("logits to draw from are not numbers")
    moves_R = u_R3[:, 0] * (stays * there_R + (1.0 - stays) / V) >= stays * there_R
    drawn_R = moves_R & (u_R3[:, 1] < alpha_s)
    token_R = torch.where(moves_R, (u_R3[:, 2] * V).long().clamp_(max=V - 1), z_R)
    token_R[drawn_R] = masked.invert(loo_RV[drawn_R], u_R3[drawn_R, 2:])
    return token_R


# ---- the Gaussian process that it is the argmax of ------------------------------------------------------------------
@lru_cache(maxsize=4)
def _lift_table(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha of the argmax on a grid of signal-to-noise ratios: `(V P - 1) / (V - 1)`, P the probability that x stays on top."""
    from scipy.special import log_ndtr  # start-up time

    ratio_S = np.concatenate((np.linspace(0.0, 1.0, 200), np.geomspace(1.0, 40.0, 400)[1:]))
    u_Q, weight_Q = np.polynomial.hermite_e.hermegauss(256)
    top_S = np.exp((vocab_size - 1) * log_ndtr(u_Q[None] + ratio_S[:, None])) @ (weight_Q / weight_Q.sum())
    alpha_S = (vocab_size * top_S - 1.0) / (vocab_size - 1.0)
    return ratio_S, np.maximum.accumulate(alpha_S.clip(0.0, 1.0))


def around(x_BL: Tensor, alpha_B: Tensor, noise_BLV: Tensor) -> Tensor:
    """`w = r x + noise` (B, L, V), r the ratio at which its argmax keeps x as often as alpha says.

    As r grows with the same noise, the argmax jumps once, to x: a path from noise to data.
    """
    ratio_S, alpha_S = _lift_table(noise_BLV.shape[-1])
    ratio_B = torch.from_numpy(np.interp(alpha_B.cpu().numpy(), alpha_S, ratio_S)).to(noise_BLV)
    return noise_BLV.scatter_add(2, x_BL[..., None], ratio_B[:, None, None].expand(*x_BL.shape, 1))


def lifted(
    x_BL: Tensor, alpha_B: Tensor, vocab_size: int, softness: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """z_t as the argmax of Gaussians around x, and the softmax that it is the limit of (Duo, Sahoo et al. 2025).

    z (B, L) has the law of `corrupt`; `softmax(w / softness)` (B, L, V) float32 is what a network can be trained on first.
    """
    noise_BLV = torch.randn((*x_BL.shape, vocab_size), generator=generator, device=x_BL.device)
    w_BLV = around(x_BL, alpha_B, noise_BLV)
    return w_BLV.argmax(-1), (w_BLV / softness).softmax(-1)
