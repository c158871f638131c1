"""A hidden Markov model: what explains the tokens is itself a path of L states.

Forward-backward with scaling (Rabiner 1989, section V.A) gives every law exactly.

Shapes: N sequences, L tokens, V symbols, S states; lists over positions hold (N, S) tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.errors import UserError
from harness.tasks import parts
from harness.tasks.base import Exact, ExactTask
from harness.tasks.source import LARGEST_VOCABULARY, TaskSource, TaskSourceOptions

#: Positions times sequences that a Monte Carlo entropy may cost: a second or two on one core.
_WORK = 1 << 21


@dataclass(frozen=True)
class Smoothed:
    """What x_S says about the path: p(z_t = a | x_S) (N, L, S) and p(z_t = a, z_{t+1} = b | x_S) by position."""

    state_NLS: Tensor
    pair_NSS: list[Tensor]


class HMM(ExactTask):
    """Uniform start, sticky states, symbols that are mostly a state's own.

    A state is kept with probability `stay`, else another one is chosen uniformly. Each state owns `symbols / states`
    symbols and emits them with total probability `purity`, spread uniformly; the rest is spread over the others.
    """

    name = "hmm"

    def __init__(
        self, length: int = 32, states: int = 3, symbols: int = 6, stay: float = 0.9, purity: float = 0.96
    ) -> None:
        if symbols % states:
            nearest = states * max(1, min(round(symbols / states), LARGEST_VOCABULARY // states))
            raise UserError(f"data.symbols={symbols} cannot be shared out among {states} states; use {nearest}")
        self.length, self.vocab_size, self.states = length, symbols, states
        self.stay, self.purity = stay, purity
        self._own = symbols // states
        same_SS = torch.eye(states, dtype=torch.float64)
        is_own_SV = same_SS.repeat_interleave(self._own, dim=1)
        self._emit_SV = is_own_SV * (purity / self._own) + (1 - is_own_SV) * ((1 - purity) / (symbols - self._own))
        self._move_SS = same_SS * stay + (1 - same_SS) * ((1 - stay) / (states - 1))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        shape = (n, self.length)
        jump_NL = (rng.random(shape) >= self.stay) * rng.integers(1, self.states, size=shape)
        jump_NL[:, 0] = rng.integers(self.states, size=n)
        own_NL = self._own * (np.cumsum(jump_NL, axis=1) % self.states)
        # The symbols of the other states follow one's own on a circle.
        other_NL = self._own + rng.integers(self.vocab_size - self._own, size=shape)
        shift_NL = np.where(rng.random(shape) < self.purity, rng.integers(self._own, size=shape), other_NL)
        return (own_NL + shift_NL) % self.vocab_size

    # ---- exact laws -----------------------------------------------------------------------------------------------
    def _evidence(self, x_NL: Tensor, known_NL: Tensor | None) -> Tensor:
        """p(x_i | z_i = a) at known positions and 1 elsewhere, (L, N, S)."""
        ids_NL = parts.checked_ids(x_NL, known_NL, self.vocab_size)
        evidence_NLS = self._emit_SV.to(x_NL.device).T[ids_NL]
        if known_NL is not None:
            evidence_NLS = torch.where(known_NL[..., None], evidence_NLS, 1.0)
        return evidence_NLS.transpose(0, 1).contiguous()

    def _forward(self, evidence_LNS: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """p(z_t | x_S up to t) and the scales p(x_t | x_S before t) as (N, 1), which are 0 from where x is impossible."""
        move_SS = self._move_SS.to(evidence_LNS.device)
        ahead_NS = torch.full_like(evidence_LNS[0], 1 / self.states)
        filtered, scales = [], []
        for evidence_NS in evidence_LNS:
            joint_NS = ahead_NS * evidence_NS
            scale_N1 = joint_NS.sum(1, keepdim=True)
            filtered.append(joint_NS / torch.where(scale_N1 > 0, scale_N1, 1.0))
            scales.append(scale_N1)
            ahead_NS = filtered[-1] @ move_SS
        return filtered, scales

    def log_prob(self, x_NL: Tensor) -> Tensor:
        _, scales = self._forward(self._evidence(x_NL, None))
        return torch.cat(scales, dim=1).log().sum(1)

    def smooth(self, x_NL: Tensor, known_NL: Tensor | None = None) -> Smoothed:
        """Posterior of states and pairs given the known tokens (all, by default); the prior where they are impossible."""
        evidence_LNS = self._evidence(x_NL, known_NL)
        filtered, scales = self._forward(evidence_LNS)
        move_SS = self._move_SS.to(x_NL.device)
        dead_N1 = (torch.cat(scales, dim=1) == 0).any(1, keepdim=True)
        behind_NS = torch.ones_like(filtered[-1])
        states, pairs = [filtered[-1]], []
        for t in range(self.length - 1, 0, -1):
            told_NS = evidence_LNS[t] * behind_NS / torch.where(scales[t] > 0, scales[t], 1.0)
            pairs.append(filtered[t - 1][:, :, None] * move_SS * told_NS[:, None, :])
            behind_NS = told_NS @ move_SS.T
            states.append(filtered[t - 1] * behind_NS)
        state_NLS = torch.stack(states[::-1], dim=1)
        prior = 1 / self.states
        return Smoothed(
            torch.where(dead_N1[..., None], prior, state_NLS),
            [torch.where(dead_N1[..., None], prior * move_SS, pair_NSS) for pair_NSS in pairs[::-1]],
        )

    def conditionals(self, x_NL: Tensor, known_NL: Tensor) -> Tensor:
        """See `ExactTask.conditionals`: the smoothed state, then its emission."""
        p_NLV = self.smooth(x_NL, known_NL).state_NLS @ self._emit_SV.to(x_NL.device)
        return parts.with_point_masses(p_NLV.log(), x_NL, known_NL)

    def statistics(self, x_NL: Tensor) -> Tensor:
        """Posterior share of the positions in each state, and of the neighbours in each pair of states."""
        smoothed = self.smooth(x_NL)
        pair_NSS = torch.zeros_like(smoothed.state_NLS[:, 0, :, None] * self._move_SS.to(x_NL.device))
        for pair in smoothed.pair_NSS:
            pair_NSS += pair / (self.length - 1)
        return torch.cat([smoothed.state_NLS.mean(1), pair_NSS.flatten(1)], dim=1)

    def support(self) -> Tensor | None:
        return parts.enumerated_support(self)

    # ---- exact numbers --------------------------------------------------------------------------------------------
    @cached_property
    def exact(self) -> Exact:
        """`H(X) = H(Z) + H(X | Z) - H(Z | X)`: only the last needs draws, and it is small; enumeration where V^L is.

        The cause is the path Z, so `latent_information` is I(X; Z).
        """
        given_path = self.length * parts.entropy(self._emit_SV[0]).item()
        path = math.log(self.states) + (self.length - 1) * parts.entropy(self._move_SS[0]).item()
        if parts.is_enumerable(self.vocab_size, self.length):
            entropy, error = parts.enumerated_entropy(self), 0.0
        else:
            left, error = self.drawn_path_entropy(max(1024, min(2 * parts.DRAWS, _WORK // self.length)))
            entropy = path + given_path - left
        marginals = self.length * parts.entropy(self._emit_SV.mean(0)).item()
        return Exact(entropy, marginals - entropy, entropy - given_path, error)

    def drawn_path_entropy(self, draws: int) -> tuple[float, float]:
        """H(Z | X) in nats and its standard error, from `draws` sequences of two tokens or more.

        The entropy given each x is exact: the sum of those of all pairs of neighbours, less those of all inner states.
        """
        x_NL = torch.from_numpy(self.sample(draws, np.random.default_rng(parts.ENTROPY_SEED)))
        found = []
        for rows in parts.blocks(draws):
            smoothed = self.smooth(x_NL[rows])
            pairs = sum(parts.entropy(pair.flatten(1)) for pair in smoothed.pair_NSS)
            inner_N = parts.entropy(smoothed.state_NLS[:, 1:-1]).sum(1)
            found.append(pairs - inner_N)
        return parts.mean_and_error(torch.cat(found))


@dataclass
class HMMOptions(TaskSourceOptions):
    """See `HMM`."""

    states: int = ranged(3, 2, LARGEST_VOCABULARY)
    symbols: int = ranged(6, 2, LARGEST_VOCABULARY)  # a multiple of the states
    stay: float = ranged(0.9, 0, 1)  # probability to keep a state
    purity: float = ranged(0.96, 0, 1)  # probability of a state's own symbols


class HMMData(TaskSource):
    """Sequences of `scale.length` symbols."""

    Options = HMMOptions

    def task(self, length: int) -> HMM:
        o = self.options
        return HMM(length, o.states, o.symbols, o.stay, o.purity)
