"""SDTT: a masked model teaches itself to take one step for two, in rounds (Deschenaux & Gulcehre 2024, arXiv 2410.21035).

The first part of training is MDLM. In round r the network of the round before, frozen, takes two steps of `2^(r-1) / first`
from noisy data; what it predicted for each masked position, in the step that revealed it or else in the second, is what the
student is to predict at once. With "forward" KL(teacher || student) the best student is the mean of what it is taught, which
for an exact teacher is the teacher's own prediction: nothing is gained. With "reverse" it is sharper than the mean. All
rounds, and the teacher's calls, are part of the training that is counted.

Shapes: B batch, L tokens, V symbols, M masked positions in row-major order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.mdlm import MDLM, MDLMOptions
from baselines.rounds import Rounds, RoundsOptions
from harness.config.fields import chosen
from harness.diffusion import masked
from harness.diffusion.schedules import stratified_times
from harness.interface import Loss, Problem


@dataclass
class SDTTOptions(RoundsOptions, MDLMOptions):
    divergence: str = chosen("reverse", ("reverse", "forward"))  # KL(student || teacher), or KL(teacher || student)


class SDTT(Rounds, MDLM):
    """Its network is the student of the last round."""

    Options = SDTTOptions
    title = "MDLM + SDTT"

    def __init__(self, problem: Problem, options: SDTTOptions) -> None:
        super().__init__(problem, options)
        self.prepare_rounds()

    @torch.no_grad()
    def taught(self, xt_BL: Tensor, masked_BL: Tensor, t_B: Tensor, generator: torch.Generator) -> Tensor:
        """log p (M, V) float32 of two steps of the teacher of this round, from times t of its grid."""
        middle_B = t_B - self.step
        alpha_B, after_B = self.schedule.alpha(t_B), self.schedule.alpha(middle_B)
        log_p_MV = self.teacher(xt_BL, masked_BL, t_B.float()).whole().log_softmax(-1)
        u_BL = torch.rand(xt_BL.shape, generator=generator, dtype=torch.float64, device=xt_BL.device)
        flips_BL = masked_BL & (u_BL < ((after_B - alpha_B) / (1.0 - alpha_B))[:, None])
        x_BL, flipped_M = xt_BL.clone(), flips_BL[masked_BL]
        x_BL[flips_BL], _ = masked.draw_tokens(log_p_MV[flipped_M], generator)
        second_MV = self.teacher(x_BL, masked_BL & ~flips_BL, middle_B.float()).whole().log_softmax(-1)
        log_p_MV[~flipped_M] = second_MV
        return log_p_MV

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """That of MDLM, or nats between student and teacher for each masked token."""
        if self._round == 0:
            return super().loss(x_BL, generator)
        steps = self.options.first // 2**self._round
        t_B = torch.ceil(stratified_times(len(x_BL), generator) * steps) / steps
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        log_p_MV = self.taught(xt_BL, masked_BL, t_B, generator)
        log_q_MV = self.network(xt_BL, masked_BL, t_B.float()).whole().log_softmax(-1)
        apart_MV = log_q_MV - log_p_MV
        apart_MV = log_q_MV.exp() * apart_MV if self.options.divergence == "reverse" else log_p_MV.exp() * -apart_MV
        total = apart_MV.sum() / max(1, len(apart_MV))
        return Loss(total, {f"nats_from_teacher_{self._round}": total.detach()})
