"""SEQ with codes that are learnt by gradients, beside those of EM (LDDM, arXiv 2510.18114: by VQ and by Gumbel-softmax).

Encoder, codes and decoder are trained together, then the prior over the codes as it is for EM's. The bound has all terms: VQ's
code is a function of the text, log q(c | x) = 0 and the code's whole price stands in -log p(c); of Gumbel's the entropy
is taken off.

Shapes: B batch, L tokens, S codes, M kinds of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.interface import Loss
from lddm.codebook import Codebook
from lddm.learned_codes import GumbelCodes, GumbelOptions, LearnedCodes, VQCodes, VQOptions
from lddm.seq_discrete import SEQDiscrete


class SEQLearned(SEQDiscrete):
    """What VQ and Gumbel have in common; `mixture` is their `LearnedCodes`."""

    #: Standardisation takes this bias off again.
    idle = ("body.out.bias",)
    mixture: LearnedCodes

    def set_stage(self, name: str) -> None:
        super().set_stage(name)
        self.mixture.freeze(name != "tokens")

    def fit(self, train_NL: np.ndarray) -> None:
        """Where codes and decoder start."""
        self.mixture.start(train_NL)

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """Shares of the codes, and a bank of them."""
        self.mixture.calibrate(x_NL)
        self.bank.clear()
        super().calibrate(x_NL)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """By stage: tokens given codes that are learnt with them, nats per token; codes, nats per code."""
        if self._stage != "tokens":
            return super().loss(x_BL, generator)
        code_BSK, more, parts = self.mixture.learn(x_BL, generator, self.progress)
        kept_B = torch.rand(len(x_BL), generator=generator, device=x_BL.device) >= self.options.latent_dropout
        loss = self._token_loss(x_BL, code_BSK * kept_B[:, None, None], generator)
        return Loss(loss.total + more, loss.parts | parts)


class SEQVQ(SEQLearned):
    """Codes are nearest vectors."""

    Options = VQOptions
    title = "SEQ, VQ codes"
    mixture: VQCodes

    def make_codebook(self, segment: int) -> Codebook:
        return VQCodes(self.problem, self.options, segment)

    @torch.no_grad()
    def encode(self, x_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The codes, (B, S), and log q = 0, (B,) float64."""
        return self.mixture.codes(x_BL), torch.zeros(len(x_BL), dtype=torch.float64, device=x_BL.device)

    def _information(self, x_BL: Tensor) -> Tensor:
        return -self.mixture.log_weight_M[self.mixture.codes(x_BL)].double().sum(1)


class SEQGumbel(SEQLearned):
    """Codes are drawn from a softmax."""

    Options = GumbelOptions
    title = "SEQ, Gumbel codes"
    mixture: GumbelCodes

    def make_codebook(self, segment: int) -> Codebook:
        return GumbelCodes(self.problem, self.options, segment)

    def _posterior(self, x_BL: Tensor) -> Tensor:
        return self.mixture.log_q(x_BL)
