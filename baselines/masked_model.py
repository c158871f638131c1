"""What the samplers of masked models draw from: a denoiser of tokens, and the schedule that it was trained on.

Shapes: N sequences, L tokens, V symbols (id V is the mask), M selected positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.diffusion import masked
from harness.diffusion.schedules import stratified_times, token_schedule
from harness.interface import Bound, Method, Problem
from harness.nn.slices import Logits


class MaskedModel(Method):
    """A masked model whose denoiser is one network; built with an option `schedule`."""

    def __init__(self, problem: Problem, options: Any) -> None:
        super().__init__(problem, options)
        self.schedule = token_schedule(options.schedule)

    @abstractmethod
    def denoise(self, x_NL: Tensor, select_NL: Tensor, t_N: Tensor) -> Tensor | Logits:
        """Logits (M, V) of x0 at the selected positions of `x_NL`, at times t: one network call.

        What reads them (`harness.diffusion.masked`) takes a tensor, or `Logits` that are made in slices.
        """

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The network that `denoise` calls, by name."""

    def noisy(self, x_BL: Tensor, generator: torch.Generator, largest: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """One time for each sequence (B,), up to `largest`; the tokens (B, L) then, and where they are masked (B, L)."""
        t_B = stratified_times(x_BL.shape[0], generator, largest)
        return t_B, *masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)

    def terms(self, x_BL: Tensor, generator: torch.Generator, largest: float = 1.0) -> masked.MaskedTerms:
        """Cross-entropies at one time for each sequence, up to `largest`."""
        t_B, xt_BL, masked_BL = self.noisy(x_BL, generator, largest)
        nll_B = masked.masked_nll(self.denoise(xt_BL, masked_BL, t_B.float()), x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_B))

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """That of as many calls as there are tokens (MDLM, eq. 10)."""
        terms = self.terms(x_BL, generator)
        return Bound(terms.nelbo_B, "continuous-time NELBO, one stratified time per sequence")

    def accepts_temperature(self) -> bool:
        """Whether the draw may be sharpened or flattened."""
        return True
