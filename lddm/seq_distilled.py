"""SDTT on the token network of SEQ with codes: given the codes it teaches itself to take one step for two, in rounds.

The codes tie the tokens of a segment together, and leave open what is between segments: there a step for two is of use. The
prior over codes is that of the teacher. All rounds, and the teacher's calls, are part of the training that is counted.

Shapes: B batch, L tokens, S codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.diffusion.ancestral import Denoiser
from harness.diffusion.rounds import MaskedRounds, MaskedRoundsOptions
from harness.interface import Loss, Problem
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions


@dataclass
class SEQDistilledOptions(MaskedRoundsOptions, SEQDiscreteOptions):
    """Those of SEQ with codes, for the teacher, and of the rounds."""


class SEQDistilled(MaskedRounds, SEQDiscrete):
    """Its decoder is the student of the last round."""

    Options = SEQDistilledOptions
    title = "SEQ, EM codes + SDTT"
    student, student_stage = "decoder", "tokens"

    def __init__(self, problem: Problem, options: SEQDistilledOptions) -> None:
        super().__init__(problem, options)
        self.prepare_rounds()

    def denoiser_of(self, network: nn.Module, latent: Tensor) -> Denoiser:
        """That of one round's network, beside codes (N, S)."""
        return lambda x_NL, select_NL, t_N: network(x_NL, latent, self.mixture, select_NL)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """That of SEQ with codes, or nats between student and teacher for each masked token, given the same codes."""
        if self._round == 0:
            return super().loss(x_BL, generator)
        c_BS, _ = self.encode(x_BL, generator)
        return self.round_loss(self.denoiser_of(self.teacher, c_BS), self.denoiser(c_BS), x_BL, generator)
