"""Binsaw: bits whose probabilities follow a shifted triangle wave; one hidden number on the circle explains all of them.

Shapes: N sequences, L tokens, V = 2 symbols, C nodes of the quadrature over u.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import Range
from harness.tasks.mixture import MixtureOfProducts
from harness.tasks.source import TaskSource

LOW, HIGH = 0.01, 0.99
LONGEST = 512
#: Gauss-Legendre nodes on each linear piece: exact for L <= 23, and to 1e-10 of p(x) for the least likely x beyond.
NODES = 12


def bit_probabilities(u: np.ndarray, length: int) -> np.ndarray:
    """p(x_i = 1 | u), (..., L): `0.01 + 0.98 (1 - |2 ((2 tau_i) mod 1) - 1|)` with `tau_i = (i / L + u) mod 1`."""
    phase = np.mod(2.0 * (np.arange(length) / length + u[..., None]), 1.0)
    return LOW + (HIGH - LOW) * (1.0 - np.abs(2.0 * phase - 1.0))


def _quadrature(length: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes u in [0, 1/2) and weights that sum to 1, (C,).

    The probabilities have period 1/2 in u and kinks at multiples of 1 / lcm(4, L); between kinks p(x | u) is a polynomial
    of degree L, so Gauss-Legendre nodes are placed on each piece.
    """
    pieces = math.lcm(4, length) // 2
    node, weight = np.polynomial.legendre.leggauss(nodes)
    u = (np.arange(pieces)[:, None] + (node + 1) / 2) / (2 * pieces)
    return u.ravel(), np.tile(weight / 2, pieces) / pieces


def _entropy_given_u() -> float:
    """Mean entropy of a bit in nats: its probability is uniform on [0.01, 0.99] where u is uniform."""

    def antiderivative(p: float) -> float:
        return p * p / 4 - p * p / 2 * math.log(p)  # of -p log p

    return 2 * (antiderivative(HIGH) - antiderivative(LOW)) / (HIGH - LOW)


class Binsaw(MixtureOfProducts):
    """`u ~ U[0, 1)`, bits independent given u. `u_C` are the values of the cause that `posterior` refers to."""

    name = "binsaw"

    def __init__(self, length: int = 128, nodes: int = NODES) -> None:
        Range(1, LONGEST).check("scale.length", length)
        self.u_C, weight_C = _quadrature(length, nodes)
        p_CL = torch.from_numpy(bit_probabilities(self.u_C, length))
        p_CLV = torch.stack([1 - p_CL, p_CL], dim=2)
        super().__init__(torch.from_numpy(weight_C), p_CLV, length * _entropy_given_u())

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        p_NL = bit_probabilities(rng.random(n), self.length)
        return (rng.random((n, self.length)) < p_NL).astype(np.int64)

    def statistics(self, x_NL: Tensor) -> Tensor:
        """Posterior mean of u's place on its circle (of period 1/2): are all u drawn alike?

        How sure the posterior is and the share of ones are left to the excess: they tell noisy bits from clean ones, and
        against their narrow spread in data even a model that is 0.2 nats off looked as if it had lost most of u.
        """
        angle_C = 4 * math.pi * torch.from_numpy(self.u_C).to(x_NL.device)
        return self.posterior(x_NL) @ torch.stack([angle_C.cos(), angle_C.sin()], dim=1)


class BinsawData(TaskSource):
    """Sequences of `scale.length` bits."""

    def task(self, length: int) -> Binsaw:
        return Binsaw(length)
