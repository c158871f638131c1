"""What networks and samplers know of the codes of segments, wherever those come from (`lddm.mixture`, `lddm.learned_codes`).

Shapes: B batch, S segments of C tokens, V symbols, M codes, K features of a code, F = C V entries of a one-hot segment.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """`log_weight_M` are the logarithms of the codes' shares, `feature_MK` what networks see of each code."""

    log_weight_M: Tensor
    feature_MK: Tensor
    #: Whether codes can be drawn given some tokens of a segment (`seen`).
    fills = False

    def __init__(self, segment: int, vocab_size: int) -> None:
        super().__init__()
        self.segment, self.vocab_size = segment, vocab_size

    def entries(self, x_NC: Tensor) -> Tensor:
        """Places (N, C) among F of the tokens of segments."""
        return x_NC + self.vocab_size * torch.arange(self.segment, device=x_NC.device)

    def places(self, count: int, slots: int) -> Tensor:
        """The place of each token in its segment, (count, S C)."""
        return torch.arange(self.segment, device=self.feature_MK.device).repeat(count, slots)

    @abstractmethod
    def laws(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Log laws of tokens (N, V) that a decoder starts from, and the row of each token of (B, S, ...) codes, (B, S C)."""

    @abstractmethod
    def marginal_F(self) -> Tensor:
        """Log law of the tokens at each place of a segment whose code is not known."""

    @abstractmethod
    def fitted_numbers(self) -> int:
        """How many numbers are learnt that no gradient trains."""
