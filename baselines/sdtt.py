"""SDTT: a masked model teaches itself to take one step for two, in rounds (Deschenaux & Gulcehre 2024, arXiv 2410.21035).

The first part of training is MDLM. In round r the network of the round before, frozen, takes two steps of `2^(r-1) / first`
from noisy data; what it predicted for each masked position, in the step that revealed it or else in the second, is what the
student is to predict at once. With "forward" KL(teacher || student) the best student is the mean of what it is taught, which
for an exact teacher is the teacher's own prediction: nothing is gained. With "reverse" it is sharper than the mean. All
rounds, and the teacher's calls, are part of the training that is counted.

Shapes: B batch, L tokens, N sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.mdlm import MDLM, MDLMOptions
from harness.diffusion.rounds import MaskedRounds, MaskedRoundsOptions
from harness.interface import Loss, Problem


@dataclass
class SDTTOptions(MaskedRoundsOptions, MDLMOptions):
    """Those of MDLM, for the teacher, and of the rounds."""


class SDTT(MaskedRounds, MDLM):
    """Its network is the student of the last round."""

    Options = SDTTOptions
    title = "MDLM + SDTT"

    def __init__(self, problem: Problem, options: SDTTOptions) -> None:
        super().__init__(problem, options)
        self.prepare_rounds()

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """That of MDLM, or nats between student and teacher for each masked token."""
        if self._round == 0:
            return super().loss(x_BL, generator)
        return self.round_loss(self.teacher, self.network, x_BL, generator)
