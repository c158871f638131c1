"""The uniform-state process over tokens: noise replaces a token by any symbol, and a reverse step may change each again.

`q(z_t | x) = alpha x + (1 - alpha) / V`. What a network predicts is read as the *leave-one-out* denoiser, the law of the token
given all noisy tokens but its own: `p(z_i = j | the others) = alpha p_loo(j) + (1 - alpha) / V` is then exact, and so are
the rates of the reverse process, ratios of these numbers. The posterior of the token given its own noisy value too is
`p_loo(x) q(z | x)`, made whole.

Shapes: B sequences, L tokens, V symbols, M = B L positions in row-major order, R of them in a slice.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


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
    `r_j = a_j / a_z` with `a = V alpha x + 1 - alpha`, and s the same with p_loo in the place of x.
    """
    V, rest_R = loo_RV.shape[1], 1.0 - alpha_R
    full_R = V * alpha_R + rest_R
    model_RV = torch.log(V * alpha_R[:, None] * loo_RV.double().softmax(-1) + rest_R[:, None])
    own_R, right_R = model_RV.gather(1, z_R[:, None])[:, 0], model_RV.gather(1, x_R[:, None])[:, 0]
    kept_R = z_R == x_R
    a_z_R, log_R = torch.where(kept_R, full_R, rest_R), torch.log(full_R / rest_R)
    entropy_R = torch.where(kept_R, -(V - 1) * rest_R / full_R * log_R, full_R / rest_R * log_R)
    cross_R = (V * own_R - rest_R * model_RV.sum(-1) - (full_R - rest_R) * right_R) / a_z_R
    return (entropy_R + cross_R - V / a_z_R + V * torch.exp(-own_R)) / V


def step_logits(loo_RV: Tensor, z_R: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """`log q(z_s | z_t)` of a reverse step up to a constant, (R, V) float64, exact for the exact denoiser.

    `(alpha_s p_loo + (1 - alpha_s) / V) (a [z_s = z_t] + (1 - a) / V)` with `a = alpha_t / alpha_s`, by Bayes' rule.
    """
    V, stays = loo_RV.shape[1], alpha_t / alpha_s
    before_RV = torch.log(alpha_s * loo_RV.double().softmax(-1) + (1.0 - alpha_s) / V)
    return before_RV.scatter_add(
        1, z_R[:, None], torch.full_like(before_RV[:, :1], math.log1p(V * stays / (1.0 - stays)))
    )


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
