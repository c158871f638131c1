"""EB: reveals as many positions in a call as a bound on their joint entropy allows (Ben-Hamu et al. 2025, arXiv 2505.24857).

Drawing positions U apart instead of together costs at most `sum_U H(p_i) - max_U H(p_i)` nats, so the masked positions are
sorted by entropy and the longest beginning is revealed for which that is at most gamma. gamma = 0 reveals one token a call.

Shapes: A sequences, L tokens, V symbols, M masked positions, R of them in a slice, F = 1 feature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baselines.samplers.adaptive import Adaptive
from harness.config.fields import NoOptions


class EntropyBounded(Adaptive):
    """The dial is log gamma."""

    Options: type = NoOptions
    dials = (math.log(1e-6), math.log(1e6))

    @property
    def title(self) -> str:
        return f"{self.method.title}, entropy-bounded"

    def features(self, log_p_RV: Tensor) -> Tensor:
        """Entropies (R, 1) in nats."""
        return torch.special.entr(log_p_RV.exp()).sum(-1, keepdim=True)

    def choose(self, feature_MF: Tensor, hidden_AL: Tensor, dial: float, kept: None) -> tuple[Tensor, tuple[()]]:
        entropy_AL = torch.full(hidden_AL.shape, math.inf, dtype=feature_MF.dtype, device=feature_MF.device)
        entropy_AL[hidden_AL] = feature_MF[:, 0]
        sorted_AL, order_AL = entropy_AL.sort(dim=1, stable=True)
        # Of a sorted beginning the last is the largest: what is bounded is the sum of those before it.
        before_AL = torch.cat((torch.zeros_like(sorted_AL[:, :1]), sorted_AL[:, :-1].cumsum(1)), dim=1)
        within_AL = torch.empty_like(hidden_AL).scatter_(1, order_AL, before_AL <= math.exp(dial))
        return within_AL & hidden_AL, ()
