"""What methods with a latent have in common: tokens can be drawn given one, and latents of training sequences are at hand.

Shapes: N sequences, B batch, L tokens, S slots, D dims.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from harness.diffusion import ancestral, masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import token_schedule
from harness.interface import Bound, Loss, Method, Problem
from lddm.bank import LatentBank
from lddm.gaussian import LatentSchedule
from lddm.latent import LatentEncoder, LatentOptions, latent_terms, normal_gap


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
        self, latent: Tensor, calls: int, generator: torch.Generator, temperature: float,
        denoiser: Denoiser | None = None, start_NL: Tensor | None = None,
    ) -> tuple[Tensor, str]:  # fmt: skip
        """Tokens (N, L) given a latent, in `calls` calls of the token network, and the dtype that they were drawn from.

        `denoiser` takes the place of the method's own, and `start_NL` that of masks everywhere.
        """
        alphas, mask_id = masked.step_alphas(self.schedule, calls), self.problem.vocab_size
        if start_NL is None:
            start_NL = ancestral.blank(len(latent), self.problem.length, mask_id, generator.device)
        return ancestral.sample(denoiser or self.denoiser(latent), start_NL, mask_id, alphas, generator, temperature)


class GaussianLatentModel(LatentModel):
    """One whose latent is z0 ~ N(mu(x), s^2 I); a bank keeps mu of training sequences."""

    #: Standardisation takes this bias off again: its gradient is rounding, on some processors exactly 0.
    idle: tuple[str, ...] = ("body.out.bias",)
    bank: LatentBank

    def __init__(self, problem: Problem, options: LatentOptions) -> None:
        super().__init__(problem, options)
        self.latent_schedule = LatentSchedule(options.latent_shift)
        self.encoder = LatentEncoder(problem, options)
        if options.blank:
            self.title, self.idle = f"{self.title}, blank latent", (*self.idle, "encoder.")
        self.smallest_part = 2 if options.match > 0 else 1  # a distance is one between two latents at the least

    def calibrate(self, x_NL: Tensor) -> None:
        self.encoder.calibrate(x_NL)
        self.bank.refill(self.encoder.mean, x_NL)

    def encoded(self, n: int, generator: torch.Generator) -> Tensor:
        return self.bank.draw(n, self.encoder.noise, generator)

    def _matched(self, loss: Loss, z0_BSD: Tensor, generator: torch.Generator) -> Loss:
        """The loss with the latents' distance from normal ones, if that has a weight.

        Far from normal, latents have holes and islands, which a generator of few calls cannot follow.
        """
        if self.options.match == 0:
            return loss
        gap = normal_gap(z0_BSD, self.options.encoder_noise, generator)
        return Loss(loss.total + self.options.match * gap, loss.parts | {"match": gap.detach()})

    def _bound(self, z0_BSD: Tensor, z0_hat: Tensor, t_B: Tensor, span: float, tokens: masked.MaskedTerms) -> Bound:
        """Encoder negentropy, latent diffusion with its end terms, and tokens; see `lddm.latent.latent_terms`."""
        latent = latent_terms(z0_BSD, z0_hat, t_B, span, self.latent_schedule, self.encoder.noise)
        parts = {**latent, "tokens": tokens.nelbo_B.double()}
        return Bound.of_parts(parts, "NELBO with latent terms, one time per sequence and channel")
