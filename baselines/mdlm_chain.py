"""Masked diffusion whose tokens of one call are drawn together: the network's logits beside n-grams, summed over exactly.

A masked model draws the tokens of a call apart, which is what few calls cost. Here a call gives a law of all masked tokens,
`p(x | x_t) ~ chain(x) prod_i exp(u_i(x_i))` where x agrees with what is shown: a chain of n-grams that was counted once, and
logits u of the network for each position (a conditional random field, Lafferty et al. 2001; over a decoder that is not
autoregressive Sun et al. 2019, arXiv 1910.11555; Liu et al. 2024, arXiv 2410.01949, put an autoregressive copula beside a
diffusion). Its sum over all sequences is exact, by the forward-backward algorithm, so that the joint likelihood is trained,
and tokens are drawn from it. There is no latent: it says what neighbours alone are worth.

Shapes: B batch, L tokens, N sequences, V symbols (id V is the mask), M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.config.fields import chosen, ranged
from harness.diffusion.schedules import TOKEN_SCHEDULES
from harness.interface import Loss, Problem
from harness.nn.markov_chain import MarkovChain, certain
from harness.nn.networks import TokenNetwork


@dataclass
class MDLMChainOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    order: int = ranged(3, 2, 64)  # n of the n-grams; tables have vocab_size^order numbers


class MDLMChain(MaskedModel):
    """The chain is fitted before the first step, from the sequences of the budget; the network begins at no opinion."""

    Options = MDLMChainOptions
    title = "MDLM, chain head"

    def __init__(self, problem: Problem, options: MDLMChainOptions) -> None:
        super().__init__(problem, options)
        self.network = TokenNetwork(problem.shape, problem.vocab_size)
        self.chain = MarkovChain(options.order, problem.length, problem.vocab_size)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"token": self.network}

    def fit(self, train_NL: np.ndarray) -> None:
        self.chain.fit(train_NL)

    def fitted_numbers(self) -> int:
        return self.chain.fitted_numbers()

    def evidence(self, x_BL: Tensor) -> Tensor:
        """The network's logits where `x_BL` is masked, certainty where it is not, (B, L, V) float32: one call."""
        V = self.problem.vocab_size
        everywhere_BL = torch.ones_like(x_BL, dtype=torch.bool)
        logits_BLV = self.network(x_BL, everywhere_BL).whole().view(*x_BL.shape, V)
        return torch.where((x_BL < V)[..., None], certain(x_BL, V), logits_BLV)

    def denoise(self, x_NL: Tensor, select_NL: Tensor, t_N: Tensor) -> Tensor:
        """log p(x_i | x_t) of each position by itself, for samplers that draw tokens apart."""
        return self.chain.posterior(self.evidence(x_NL))[0][select_NL]

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Minus the joint log-likelihood of a sequence's masked tokens, over the number of masked tokens."""
        _, xt_BL, masked_BL = self.noisy(x_BL, generator, self.largest_time)
        nll = self.chain.joint_nll(self.evidence(xt_BL), x_BL, masked_BL)
        total = nll / masked_BL.sum().clamp(min=1)
        return Loss(total, {"joint_nats_per_token": total.detach()})
