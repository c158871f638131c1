"""Masked diffusion with a noise input: given the noise tokens are drawn apart; it is shared by all, and ties them together.

A vector of noise is added to the embedding of every mask (after IMDM, arXiv 2605.10518; mixtures of products as in Di4C,
Hayakawa et al. 2024, arXiv 2410.08709). No teacher: of M noises the network learns the mixture `1/M sum_m prod_i p(x_i | x_t,
noise_m)`, whose -log is, in the mean, an upper bound of that of the mixture over all noise. What makes it use its noise:

- Where all is masked the input is noise alone, so that one set of noises serves all sequences of a batch, each of which
  finds the noise that is nearest to it among many, at the price of one call for each noise.
- In the first steps a text teaches only the noise that is nearest to it (multiple choice learning, Guzman-Rivera et al. 2012).
  The mixture itself has a saddle where all noises say the same; from there hundreds of steps were not enough.
- M noises tell log M nats, which are soon spent on a whole text. So the mixture is also asked for each run of `window`
  neighbours by itself (a composite likelihood, Lindsay 1988: its best law has the right law in each run).

Shapes: B batch, L tokens, V symbols, D noise coordinates, E width, M noises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times, token_schedule
from harness.interface import Bound, Loss, Method, Problem, Stage
from harness.nn.networks import TokenNetwork
from harness.nn.slices import Logits, by_sequences

_HEAD = 0.03  # ten times as much leaves noises whose texts are like nothing, which no data ask for


@dataclass
class NoiseMDLMOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    noise: int = ranged(4, 1, 4096)  # coordinates of the noise
    noise_share: float = ranged(
        0.4, 0, 0.99
    )  # of the steps, before all others, of noise alone; a quarter of them nearest
    full_mask: float = ranged(0.5, 0, 1)  # share of a batch's calls that are of noise alone in the other steps
    noises: int = ranged(4, 1, 1024)  # that a sequence with some tokens shown is tried with; 1 learns no mixture there
    window: int = ranged(4, 0)  # neighbours whose law is compared by itself, beside that of all tokens; 0: none


class NoiseNetwork(TokenNetwork):
    """Tokens (B, L) and noise (B, D) to `Logits` at the selected positions; the noise comes in where a mask is.

    It also sees the signs of its noise, across which it may jump: a continuous map cannot tear a normal law into islands.
    """

    def __init__(self, problem: Problem, noise: int) -> None:
        super().__init__(problem.shape, problem.vocab_size)
        self.noise_in = nn.Linear(2 * noise, problem.shape.width, bias=False)
        # Without it the places of a text that is all masks are one and the same to a network of relative positions.
        self.place = nn.Parameter(torch.randn(problem.length, problem.shape.width))
        # Not zero: laws that are equal for all noises are a saddle, and cost the first hundreds of steps.
        nn.init.normal_(self.head.weight, std=_HEAD)

    def forward(self, x_BL: Tensor, select_BL: Tensor, noise_BD: Tensor) -> Logits:  # type: ignore[override]
        return Logits(self._logits, self.head.out_features, by_sequences(self._seen, x_BL, select_BL, noise_BD))

    def _seen(self, x_BL: Tensor, select_BL: Tensor, noise_BD: Tensor) -> Tensor:
        added_BE = self.noise_in(torch.cat((noise_BD, noise_BD.sign()), dim=1).to(self.noise_in.weight.dtype))
        mask_BL1 = (x_BL == self.head.out_features)[..., None]
        h_BLE = self.embed(x_BL) + mask_BL1 * added_BE[:, None] * self.place
        positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
        return self.trunk(self.stem(h_BLE), positions_L)[0][select_BL]


def mixture_nats(log_p_MBL: Tensor, masked_BL: Tensor, window: int, nearest: bool = False) -> Tensor:
    """Nats per masked token of the mixture of M equal shares, a scalar: of whole sequences and of runs of neighbours in halves.

    `log_p_MBL` is log p of each token under each component. Runs that do not fit are left out. With `nearest` nats of the best
    component, in the place of the mixture's.
    """

    def log_p(part_MBR: Tensor) -> Tensor:
        return part_MBR.amax(0) if nearest else part_MBR.logsumexp(0) - math.log(len(part_MBR))

    hidden_BL = masked_BL.float()
    sum_MBL = (log_p_MBL * hidden_BL).cumsum(-1)
    whole_MB, count = sum_MBL[..., -1], hidden_BL.sum().clamp(min=1)
    nats = -log_p(whole_MB).sum() / count
    if not 0 < window < masked_BL.shape[1]:
        return nats
    run_MBR = sum_MBL[..., window - 1 :] - torch.nn.functional.pad(sum_MBL, (1, 0))[..., :-window]
    shown = hidden_BL.unfold(1, window, 1).sum().clamp(min=1)
    return 0.5 * nats - 0.5 * log_p(run_MBR).sum() / shown


class NoiseModel(Method):
    """A masked model whose network takes noise, standard normal; built with options `schedule` and `noise`."""

    def __init__(self, problem: Problem, options: Any) -> None:
        super().__init__(problem, options)
        self.schedule = token_schedule(options.schedule)
        self.network = NoiseNetwork(problem, options.noise)

    def networks(self) -> Mapping[str, nn.Module]:
        """What the samplers call."""
        return {"token": self.network}

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, D), standard normal."""
        return torch.randn((n, self.options.noise), generator=generator, device=generator.device)

    def _noisy(self, x_BL: Tensor, t_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)


class NoiseMDLM(NoiseModel):
    """`p(x) = E_noise p(x | noise)`, each p(x | noise) a masked diffusion."""

    Options = NoiseMDLMOptions
    title = "MDLM + noise"

    def __init__(self, problem: Problem, options: NoiseMDLMOptions) -> None:
        super().__init__(problem, options)
        self.set_stage("tokens")

    def stages(self) -> tuple[Stage, ...]:
        share = self.options.noise_share
        if not share:
            return (Stage("tokens"),)
        return Stage("nearest", 0.25 * share), Stage("noise", 0.75 * share), Stage("tokens", 1.0 - share)

    def set_stage(self, name: str) -> None:
        self._nearest, self._alone_share = name == "nearest", self.options.full_mask if name == "tokens" else 1.0

    def _alone(self, x_BL: Tensor, calls: int, generator: torch.Generator) -> Tensor:
        """log p(x_i | noise) of all tokens of all sequences under each of so many noises, (calls, B, L) nats."""
        mask_ML = torch.full((calls, x_BL.shape[1]), self.problem.vocab_size, device=x_BL.device)
        logits_RV = self.network(mask_ML, torch.ones_like(mask_ML, dtype=torch.bool), self.noise(calls, generator))
        log_p_MLV = logits_RV.whole().log_softmax(-1).view(*mask_ML.shape, -1)
        return log_p_MLV[:, torch.arange(x_BL.shape[1], device=x_BL.device), x_BL]

    def _beside(self, x_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """log p(x_i | x_t, noise) of masked tokens under `noises` noises of each sequence, (M, B, L), and where they are."""
        t_B = stratified_times(len(x_BL), generator, self.largest_time)
        xt_BL, masked_BL = self._noisy(x_BL, t_B, generator)
        xt_NL, masked_NL = (each.repeat(self.options.noises, 1) for each in (xt_BL, masked_BL))
        logits_RV = self.network(xt_NL, masked_NL, self.noise(len(xt_NL), generator))
        log_p_NL = torch.zeros(xt_NL.shape, device=x_BL.device)
        log_p_NL[masked_NL] = -masked.token_nll(logits_RV, x_BL.repeat(self.options.noises, 1)[masked_NL])
        return log_p_NL.view(-1, *x_BL.shape), masked_BL

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Nats per masked token: of noise alone against all of the batch, and of some sequences with a few noises each."""
        alone = round(len(x_BL) * self._alone_share)
        beside = -(-(len(x_BL) - alone) // self.options.noises)
        total, parts, window = x_BL.new_zeros((), dtype=torch.float32), dict[str, Tensor](), self.options.window
        if alone:
            log_p_MBL = self._alone(x_BL, alone, generator)
            all_BL = torch.ones_like(x_BL, dtype=torch.bool)
            parts["nats_of_noise_alone"] = mixture_nats(log_p_MBL, all_BL, window, self._nearest)
            total = total + alone / len(x_BL) * parts["nats_of_noise_alone"]
        if beside:
            parts["nats_beside_tokens"] = mixture_nats(*self._beside(x_BL[:beside], generator), window)
            total = total + (1.0 - alone / len(x_BL)) * parts["nats_beside_tokens"]
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """The NELBO given one noise: an upper bound in the mean, and a loose one, as it knows no posterior of the noise."""
        t_B = stratified_times(len(x_BL), generator)
        xt_BL, masked_BL = self._noisy(x_BL, t_B, generator)
        nll_B = masked.masked_nll(self.network(xt_BL, masked_BL, self.noise(len(x_BL), generator)), x_BL, masked_BL)
        return Bound(
            self.schedule.weight(t_B) * nll_B, "NELBO given one noise from its prior, one stratified time per sequence"
        )
