"""What the samplers of masked models draw from: a denoiser of tokens, and the schedule that it was trained on.

Shapes: N sequences, L tokens, V symbols (id V is the mask), M selected positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from harness.diffusion.schedules import token_schedule
from harness.interface import Method, Problem
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

    def accepts_temperature(self) -> bool:
        """Whether the draw may be sharpened or flattened."""
        return True
