"""A distance between two sets of latents that needs no densities: the loss of the one-call sampler, and of matching.

`E 2 rho(|x - y|) - rho(|x - x'|) - rho(|y - y'|)` is zero only where x and y have one law, for any rho of negative type
(Sejdinovic et al. 2013, section 3; Gneiting & Raftery 2007, section 5). Here `rho(d) = log(d^2 + s^2) / 2`, and not the
`d` of the energy distance, which sees the places of clusters but hardly their shapes: with it a generator leaves mass
between clusters (measured in `docs/log.md`, 2026-11-23).

Shapes: N and M latents of S slots and D dims.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rho(square: Tensor, scale: float) -> Tensor:
    """`log(d^2 + s^2) / 2` of squared distances; of negative type, as a Bernstein function of d^2 is (Schoenberg 1938)."""
    return 0.5 * torch.log(square.clamp(min=0.0) + scale**2)


def _squares(a_NC: Tensor, b_MC: Tensor) -> Tensor:
    """Squared distances (N, M); written out as products, whose backward pass is two matrix products."""
    cross_NM = a_NC @ b_MC.T
    return a_NC.square().sum(1)[:, None] + b_MC.square().sum(1)[None, :] - 2.0 * cross_NM


def _within(a_NC: Tensor, scale: float) -> Tensor:
    """Mean of rho over pairs of different members."""
    n = len(a_NC)
    value_NN = rho(_squares(a_NC, a_NC), scale)
    return (value_NN.sum() - value_NN.diagonal().sum()) / (n * (n - 1))


def distance(x_NSD: Tensor, y_MSD: Tensor, scale: float) -> Tensor:
    """Unbiased estimate of the squared distance between the laws of x and y (it may be below 0); a scalar, float32."""
    x_NC, y_MC = x_NSD.flatten(1).float(), y_MSD.flatten(1).float()
    between = rho(_squares(x_NC, y_MC), scale).mean()
    return 2.0 * between - _within(x_NC, scale) - _within(y_MC, scale)
