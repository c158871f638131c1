"""SEDD, absorbing: ratios of probabilities of neighbouring texts, learnt by score entropy (Lou et al. 2023, arXiv 2310.16834).

At a masked position the ratio of the text with token y to the one with the mask is `alpha / (1 - alpha) p(y | shown tokens)`.
The network gives `exp(l_y)` in the place of p, which nothing makes sum to 1. The denoising score entropy is then

    -alpha' / (1 - alpha) sum over masked of [ sum_y exp(l_y) - 1 - l_x ],

MDLM's bound where `Z = sum_y exp(l_y)` is 1, and above it by `Z - 1 - log Z` for each masked token elsewhere.

Shapes: B batch, L tokens, V symbols, M masked positions in row-major order, R of them in a slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import chosen
from harness.diffusion import masked
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times, token_schedule
from harness.interface import Bound, Loss, Method, Problem
from harness.nn.networks import TokenNetwork
from harness.nn.slices import Logits


@dataclass
class SEDDOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    loss: str = chosen("masked_mean", masked.LOSSES)  # weights of the score entropy: those of a mean, or of the bound
    time_conditioning: bool = True  # the paper's network sees the time


def score_entropy(logits_MV: Tensor | Logits, token_M: Tensor) -> Tensor:
    """`sum_y exp(l_y) - 1 - l_x` of each position, (M,) nats; where no gradient is wanted in slices."""

    def each(log_RV: Tensor, token_R: Tensor) -> Tensor:
        return log_RV.exp().sum(-1) - 1.0 - log_RV.gather(1, token_R[:, None])[:, 0]

    if torch.is_grad_enabled():
        return each(Logits.of(logits_MV).whole(), token_M)
    return masked.by_rows(each, logits_MV, token_M)


class SEDD(Method):
    """A masked model of ratios."""

    Options = SEDDOptions
    title = "SEDD"

    def __init__(self, problem: Problem, options: SEDDOptions) -> None:
        super().__init__(problem, options)
        self.schedule = token_schedule(options.schedule)
        self.network = TokenNetwork(problem.shape, problem.vocab_size, time=options.time_conditioning)

    def networks(self) -> Mapping[str, nn.Module]:
        """What the sampler calls."""
        return {"token": self.network}

    def ratios(self, x_BL: Tensor, select_BL: Tensor, t_B: Tensor) -> Logits:
        """l (M, V): log of the ratios but for `alpha / (1 - alpha)`; all are 1 / V before training."""
        start = math.log(self.problem.vocab_size)
        return self.network(x_BL, select_BL, t_B.float()).then(lambda logits_RV: logits_RV - start)

    def _terms(self, x_BL: Tensor, generator: torch.Generator, largest: float = 1.0) -> masked.MaskedTerms:
        """Score entropies at one time for each sequence, up to `largest`."""
        t_B = stratified_times(len(x_BL), generator, largest)
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        entropy_B = masked.masked_nll(self.ratios(xt_BL, masked_BL, t_B), x_BL, masked_BL, score_entropy)
        return masked.MaskedTerms(entropy_B, masked_BL.sum(1), self.schedule.weight(t_B))

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        total = self._terms(x_BL, generator, self.largest_time).loss(self.options.loss, x_BL.shape[1])
        return Loss(total, {"score_entropy": total.detach()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        terms = self._terms(x_BL, generator)
        return Bound(terms.nelbo_B, "denoising score entropy, one stratified time per sequence")
