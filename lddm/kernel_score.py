"""A distance between two sets of latents that needs no densities: the loss of the one-call sampler, and of matching.

`E 2 rho(|x - y|) - rho(|x - x'|) - rho(|y - y'|)` is zero only where x and y have one law, for any rho of negative type
(Sejdinovic et al. 2013, section 3; Gneiting & Raftery 2007, section 5). Here `rho(d) = log(d^2 + s^2) / 2`, and not the
`d` of the energy distance, which sees the places of clusters but hardly their shapes: with it a generator leaves mass
between clusters (measured in `docs/log.md`, 2026-11-23).

Shapes: N and M latents of S slots and D dims.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Rows of a block of pairs: its three or four passes then stay in a core's cache, which is 1.7 times as fast at M = 1024.
_ROWS = 256


class _MeanRho(torch.autograd.Function):
    """Mean of rho over all pairs of `a` (N, C) and `b` (M, C), with the gradient for `a` alone; float32.

    The gradient is a closed form, `sum_j (a_i - b_j) / (d_ij^2 + s^2)`: three times as fast as recording each operation.
    """

    @staticmethod
    def forward(ctx: Any, a_NC: Tensor, b_MC: Tensor, scale: float) -> Tensor:
        norm_M, total, grad_NC = b_MC.square().sum(1), a_NC.new_zeros(()), torch.empty_like(a_NC)
        for rows, grad in zip(a_NC.split(_ROWS), grad_NC.split(_ROWS), strict=True):
            # d^2 written out as products; rounding may leave it a little below 0.
            shifted = torch.addmm(norm_M[None], rows, b_MC.T, alpha=-2.0).add_(rows.square().sum(1)[:, None])
            shifted.clamp_(min=0.0).add_(scale**2)
            total += shifted.log().sum()
            weight = shifted.reciprocal_()
            grad.copy_(weight.sum(1, keepdim=True) * rows - weight @ b_MC)
        pairs = len(a_NC) * len(b_MC)
        ctx.save_for_backward(grad_NC / pairs)
        return 0.5 * total / pairs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_NC,) = ctx.saved_tensors
        return grad * grad_NC, None, None


def _within(a_NC: Tensor, scale: float) -> Tensor:
    """Mean of rho over pairs of different members."""
    n = len(a_NC)
    # Each pair moves at both ends, and `_MeanRho` gives the gradient at one of them.
    moving = 2.0 * _MeanRho.apply(a_NC, a_NC.detach(), scale)
    still = moving.detach() / 2.0
    return (n * (moving - still) - math.log(scale)) / (n - 1)


def distance(x_NSD: Tensor, y_MSD: Tensor, scale: float) -> Tensor:
    """Unbiased estimate of the squared distance between the laws of x and y (it may be below 0); a scalar, float32.

    The gradient is for x alone: y is a target.
    """
    with torch.autocast(x_NSD.device.type, enabled=False):
        x_NC, y_MC = x_NSD.flatten(1).float(), y_MSD.detach().flatten(1).float()
        between = _MeanRho.apply(x_NC, y_MC, scale)
        return 2.0 * between - _within(x_NC, scale) - _within(y_MC, scale)
