"""Masked diffusion with a noise input: given the noise tokens are drawn apart; it is shared by all, and ties them together.

A vector of noise is added to the embedding of every mask (after IMDM, arXiv 2605.10518; mixtures of products as in Di4C,
Hayakawa et al. 2024, arXiv 2410.08709). No teacher: of M noises for each sequence the network learns the mixture
`1/M sum_m prod_i p(x_i | x_t, noise_m)` of all masked tokens at once. Its gradient is that of one noise that is drawn by its
share of the mixture: M calls are made without a gradient and one with it. Minus its logarithm is, in the mean, an upper bound
of that of the mixture over all noise.

Shapes: B batch, L tokens, V symbols, D noise coordinates, E width, M noises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times, token_schedule
from harness.interface import Bound, Loss, Method, Problem
from harness.nn.networks import TokenNetwork
from harness.nn.slices import Logits, by_sequences


@dataclass
class NoiseMDLMOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    noise: int = ranged(16, 1, 4096)  # coordinates of the noise
    noises: int = ranged(8, 1, 1024)  # that a sequence is tried with in a step of training; 1 learns no mixture


class NoiseNetwork(TokenNetwork):
    """Tokens (B, L) and noise (B, D) to `Logits` at the selected positions; the noise comes in where a mask is.

    It also sees the signs of its noise, across which it may jump: a continuous map cannot tear a normal law into islands.
    """

    def __init__(self, problem: Problem, noise: int) -> None:
        super().__init__(problem.shape, problem.vocab_size)
        self.noise_in = nn.Linear(2 * noise, problem.shape.width, bias=False)

    def forward(self, x_BL: Tensor, select_BL: Tensor, noise_BD: Tensor) -> Logits:  # type: ignore[override]
        return Logits(self._logits, self.head.out_features, by_sequences(self._seen, x_BL, select_BL, noise_BD))

    def _seen(self, x_BL: Tensor, select_BL: Tensor, noise_BD: Tensor) -> Tensor:
        added_BE = self.noise_in(torch.cat((noise_BD, noise_BD.sign()), dim=1).to(self.noise_in.weight.dtype))
        mask_BL1 = (x_BL == self.head.out_features)[..., None]
        h_BLE = self.embed(x_BL) + mask_BL1 * added_BE[:, None]
        positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
        return self.trunk(self.stem(h_BLE), positions_L)[0][select_BL]


class NoiseMDLM(Method):
    """`p(x) = E_noise p(x | noise)`, each p(x | noise) a masked diffusion."""

    Options = NoiseMDLMOptions
    title = "MDLM + noise"

    def __init__(self, problem: Problem, options: NoiseMDLMOptions) -> None:
        super().__init__(problem, options)
        self.schedule = token_schedule(options.schedule)
        self.network = NoiseNetwork(problem, options.noise)

    def networks(self) -> Mapping[str, nn.Module]:
        """What the samplers call."""
        return {"token": self.network}

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, D), standard normal."""
        return torch.randn((n, self.options.noise), generator=generator, device=generator.device)

    @torch.no_grad()
    def choose(
        self, xt_BL: Tensor, x_BL: Tensor, masked_BL: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One of M noises for each sequence, (B, D), drawn by its share of the mixture; and minus the log of it, (B,) nats."""
        noise_MBD = torch.stack([self.noise(len(x_BL), generator) for _ in range(self.options.noises)])
        nll_MB = torch.stack([masked.masked_nll(self.network(xt_BL, masked_BL, u), x_BL, masked_BL) for u in noise_MBD])
        mixture_B = -(-nll_MB.double()).logsumexp(0) + torch.log(torch.tensor(float(len(nll_MB))))
        pick_B, _ = masked.draw_tokens(-nll_MB.mT, generator)
        return noise_MBD[pick_B, torch.arange(len(x_BL), device=x_BL.device)], mixture_B

    def _noisy(self, x_BL: Tensor, t_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Mean over masked tokens; the mixture's own value is a part of the curves."""
        xt_BL, masked_BL = self._noisy(x_BL, stratified_times(len(x_BL), generator, self.largest_time), generator)
        noise_BD, mixture_B = self.choose(xt_BL, x_BL, masked_BL, generator)
        count = masked_BL.sum().clamp(min=1)
        total = masked.masked_nll(self.network(xt_BL, masked_BL, noise_BD), x_BL, masked_BL).sum() / count
        return Loss(total, {"mixture_nats_per_token": (mixture_B.sum() / count).float()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """The NELBO given one noise: an upper bound in the mean, and a loose one, as it knows no posterior of the noise."""
        t_B = stratified_times(len(x_BL), generator)
        xt_BL, masked_BL = self._noisy(x_BL, t_B, generator)
        nll_B = masked.masked_nll(self.network(xt_BL, masked_BL, self.noise(len(x_BL), generator)), x_BL, masked_BL)
        return Bound(
            self.schedule.weight(t_B) * nll_B, "NELBO given one noise from its prior, one stratified time per sequence"
        )
