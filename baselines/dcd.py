"""DCD: Duo's consistency distillation of uniform-state diffusion (Sahoo et al. 2025, arXiv 2506.10892).

With the same Gaussian noise at two times the argmax of `harness.diffusion.uniform` is a path: each token jumps once, from its
noise to the data. The student at the noisier end is to predict what the frozen teacher predicts at the other, one step
nearer to the data; what is compared is the posterior of each token, its own noisy value included. Steps double by rounds.

Shapes: B batch, L tokens, V symbols, M = B L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.udlm import UDLM, UDLMOptions
from harness.diffusion import uniform
from harness.diffusion.rounds import Rounds, RoundsOptions
from harness.diffusion.schedules import stratified_times
from harness.interface import Loss, Problem


@dataclass
class DCDOptions(RoundsOptions, UDLMOptions):
    """Those of UDLM, for the teacher, and of the rounds."""


class DCD(Rounds, UDLM):
    """Its network is the student of the last round."""

    Options = DCDOptions

    def __init__(self, problem: Problem, options: DCDOptions) -> None:
        super().__init__(problem, options)
        self.title = f"{self.title} + DCD"
        self.prepare_rounds()

    def _log_posterior(self, network: nn.Module, z_BL: Tensor, t_B: Tensor) -> Tensor:
        logits_MV, alpha_M = self.leave_one_out(z_BL, z_BL, t_B, network)
        return logits_MV.then(uniform.with_own, z_BL.flatten(), alpha_M).whole().log_softmax(-1)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """That of UDLM, or KL(teacher one step on || student), nats per token."""
        if self._round == 0:
            return super().loss(x_BL, generator)
        t_B = stratified_times(len(x_BL), generator)
        s_B = (t_B - self.step).clamp(min=0.0)
        noise_BLV = torch.randn((*x_BL.shape, self.problem.vocab_size), generator=generator, device=x_BL.device)
        z_BL, nearer_BL = (uniform.around(x_BL, self.schedule.alpha(at_B), noise_BLV).argmax(-1) for at_B in (t_B, s_B))
        with torch.no_grad():
            log_p_MV = self._log_posterior(self.teacher, nearer_BL, s_B)
        log_q_MV = self._log_posterior(self.network, z_BL, t_B)
        total = (log_p_MV.exp() * (log_p_MV - log_q_MV)).sum(-1).mean()
        return Loss(total, {f"nats_from_teacher_{self._round}": total.detach()})
