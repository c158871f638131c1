"""What methods with a latent have in common: tokens can be drawn given one, and latents of training sequences are at hand.

Shapes: N sequences, L tokens, S slots, D dims.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from harness.diffusion import ancestral, masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import token_schedule
from harness.interface import Method, Problem


class LatentModel(Method):
    """A masked model of tokens beside a latent; built with an option `schedule`, that of its tokens."""

    #: What the row of samples from latents of training sequences is called.
    encoder_title: str

    def __init__(self, problem: Problem, options: Any) -> None:
        super().__init__(problem, options)
        self.schedule = token_schedule(options.schedule)

    @abstractmethod
    def token_network(self) -> nn.Module:
        """The network that `denoiser` calls."""

    @abstractmethod
    def denoiser(self, latent: Tensor) -> Denoiser:
        """The denoiser of tokens given a clean latent of each sequence: (N, S, D) numbers or (N, S) codes."""

    @abstractmethod
    def encoded(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents of `n` training sequences, drawn with replacement."""

    def check_encoded(self) -> None:  # noqa: B027 - most can
        """Raise `UserError` where tokens cannot be drawn given a clean latent."""

    def draw_tokens(
        self, latent: Tensor, calls: int, generator: torch.Generator, temperature: float
    ) -> tuple[Tensor, str]:
        """Tokens (N, L) given a latent, in `calls` calls of the token network, and the dtype that they were drawn from."""
        shape, alphas = (len(latent), self.problem.length), masked.step_alphas(self.schedule, calls)
        mask_id = self.problem.vocab_size
        return ancestral.sample(self.denoiser(latent), shape, mask_id, alphas, generator, temperature)
