"""KLASS: reveals positions whose prediction is sure and has stopped moving (Kim et al. 2025, arXiv 2511.05664, section 3).

A masked position is revealed where its largest probability is above `confidence` and its prediction has moved by less than
`kl` nats (KL of this call's from the last one's) in each of the last `history` calls; where there is no such position, the
`fallback` surest ones are. The dial s loosens both thresholds, `confidence exp(-s)` and `kl exp(s)`: s = 0 are the options
as they stand, and a budget chooses s.

Shapes: A sequences, L tokens, V symbols, M masked positions, R of them in a slice, F = V features.

The predictions of a whole draw are kept in float64: with large vocabularies draw few sequences at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.samplers.adaptive import Adaptive
from baselines.samplers.confidence import most_certain
from harness.config.fields import ranged


@dataclass
class KLASSOptions:
    confidence: float = ranged(0.9, 0, 1, above=True)  # least largest probability
    kl: float = ranged(0.01, 0, above=True)  # nats that a prediction may move in a call
    history: int = ranged(1, 1, 1024)  # calls that it has to stay there
    fallback: int = ranged(1, 1)  # positions that are revealed where none qualifies


class KLASS(Adaptive):
    """The first `history` calls can only fall back."""

    Options = KLASSOptions
    options: KLASSOptions
    dials = (-10.0, 40.0)

    @property
    def title(self) -> str:
        return f"{self.method.title}, KLASS"

    @property
    def least(self) -> int:
        return min(1 + self.options.history, self.method.problem.length)

    def features(self, log_p_RV: Tensor) -> Tensor:
        """All of them: they are compared with those of the next call."""
        return log_p_RV

    def choose(
        self, feature_MF: Tensor, hidden_AL: Tensor, dial: float, kept: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        o = self.options
        log_p_ALV = torch.zeros(
            (*hidden_AL.shape, feature_MF.shape[1]), dtype=feature_MF.dtype, device=feature_MF.device
        )
        log_p_ALV[hidden_AL] = feature_MF
        stable_AL = torch.zeros(hidden_AL.shape, dtype=torch.int64, device=feature_MF.device)
        if kept is not None:
            moved_M = (feature_MF.exp() * (feature_MF - kept[0][hidden_AL])).nan_to_num().sum(-1)
            stable_AL[hidden_AL] = torch.where(moved_M < o.kl * math.exp(dial), kept[1][hidden_AL] + 1, 0)
        surest_AL = torch.full(hidden_AL.shape, -math.inf, dtype=feature_MF.dtype, device=feature_MF.device)
        surest_AL[hidden_AL] = feature_MF.amax(-1)
        ready_AL = (surest_AL > math.log(o.confidence) - dial) & (stable_AL >= o.history) & hidden_AL
        fallback_AL = most_certain(surest_AL, o.fallback) & hidden_AL
        return torch.where(ready_AL.any(1, keepdim=True), ready_AL, fallback_AL), (log_p_ALV, stable_AL)
