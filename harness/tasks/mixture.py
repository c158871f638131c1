"""Mixtures of products: tokens that are independent given a cause with finitely many values.

`p(x) = sum_c w_c prod_i p(x_i | c)`. A cause on an interval is one too: its values are the nodes of a quadrature.

Shapes: N sequences, L tokens, V symbols, C values of the cause.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from harness.tasks import parts
from harness.tasks.base import Exact, ExactTask

#: Multiplications that the Monte Carlo information may cost: well under a second on one core.
_WORK = 2e9
_FEWEST_DRAWS = 1024


class MixtureOfProducts(ExactTask):
    """Everything follows from `weight_C` (sums to 1) and `p_CLV` (sums to 1 over V); closed forms, no sampling error.

    `conditional_entropy` is H(X | cause) in nats, where its average over the cause is known better than the sum over
    the nodes; otherwise it is that sum.
    """

    def __init__(self, weight_C: Tensor, p_CLV: Tensor, conditional_entropy: float | None = None) -> None:
        self.length, self.vocab_size = p_CLV.shape[1:]
        self._weight_C, self._p_CLV = weight_C, p_CLV
        flat = p_CLV.reshape(len(weight_C), -1).T
        self._impossible = (flat == 0).double() if (flat == 0).any() else None
        self._log_p = flat.clamp(min=torch.finfo(torch.float64).tiny).log()  # (L V, C)
        given_cause = (weight_C * parts.entropy(p_CLV).sum(-1)).sum().item()
        self._conditional_entropy = given_cause if conditional_entropy is None else conditional_entropy

    # ---- exact laws -----------------------------------------------------------------------------------------------
    def _log_joint(self, x_NL: Tensor, known_NL: Tensor | None) -> Tensor:
        """log w_c p(x_S | c), (N, C)."""
        hot = parts.one_hot(x_NL, known_NL, self.vocab_size).flatten(1)
        log_NC = hot @ self._log_p.to(x_NL.device)
        if self._impossible is not None:
            log_NC = log_NC.masked_fill(hot @ self._impossible.to(x_NL.device) > 0, -torch.inf)
        return log_NC + self._weight_C.to(x_NL.device).log()

    def log_prob(self, x_NL: Tensor) -> Tensor:
        found = [torch.logsumexp(self._log_joint(x_NL[rows], None), 1) for rows in parts.blocks(len(x_NL))]
        return torch.cat(found)

    def posterior_given(self, x_NL: Tensor, known_NL: Tensor | None) -> Tensor:
        """p(cause | x_S), (N, C); the prior where x_S has probability 0. `known_NL=None`: all positions are known."""
        log_NC = self._log_joint(x_NL, known_NL)
        weight_C = self._weight_C.to(x_NL.device)
        possible_N1 = torch.isfinite(log_NC).any(1, keepdim=True)
        return torch.where(possible_N1, log_NC, weight_C.log()).softmax(1)

    def posterior(self, x_NL: Tensor) -> Tensor:
        return torch.cat([self.posterior_given(x_NL[rows], None) for rows in parts.blocks(len(x_NL))])

    def conditionals(self, x_NL: Tensor, known_NL: Tensor) -> Tensor:
        """See `ExactTask.conditionals`: the posterior over the cause, then its mean of `p(x_i | c)`."""
        p = self._p_CLV.flatten(1).to(x_NL.device)
        found = []
        for rows in parts.blocks(len(x_NL)):
            p_NLV = (self.posterior_given(x_NL[rows], known_NL[rows]) @ p).view(-1, self.length, self.vocab_size)
            found.append(parts.with_point_masses(p_NLV.log(), x_NL[rows], known_NL[rows]))
        return torch.cat(found)

    def support(self) -> Tensor | None:
        return parts.enumerated_support(self)

    # ---- exact numbers --------------------------------------------------------------------------------------------
    @cached_property
    def exact(self) -> Exact:
        """Entropy by enumeration where it can be had, else H(X | cause) + I(X; cause) with a Monte Carlo I."""
        marginal_LV = torch.einsum("c,clv->lv", self._weight_C, self._p_CLV)
        marginals = parts.entropy(marginal_LV).sum().item()
        if parts.is_enumerable(self.vocab_size, self.length):
            entropy, error = parts.enumerated_entropy(self), 0.0
            information = entropy - self._conditional_entropy
        else:
            work = self._p_CLV.numel()
            draws = int(min(parts.DRAWS, max(_FEWEST_DRAWS, _WORK // work)))
            information, error = self.drawn_information(draws)
            entropy = self._conditional_entropy + information
        return Exact(entropy, marginals - entropy, information, error)

    def drawn_information(self, draws: int) -> tuple[float, float]:
        """I(X; cause) in nats and its standard error, from `draws` sequences.

        `E_x KL(p(c | x) || w)`: the average of `log p(x | c) - log p(x)` over c given x is taken exactly.
        """
        x_NL = torch.from_numpy(self.sample(draws, np.random.default_rng(parts.ENTROPY_SEED)))
        log_weight_C = self._weight_C.log()
        found = []
        for rows in parts.blocks(draws):
            p_NC = self.posterior_given(x_NL[rows], None)
            found.append(-parts.entropy(p_NC) - p_NC @ log_weight_C)
        return parts.mean_and_error(torch.cat(found))
