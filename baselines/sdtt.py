"""SDTT: a masked model teaches itself to take one step for two, in rounds (Deschenaux & Gulcehre 2024, arXiv 2410.21035).

The first part of training is MDLM. In round r the network of the round before, frozen, takes two steps of `2^(r-1) / first`
from noisy data; what it predicted for each masked position, in the step that revealed it or else in the second, is what the
student is to predict at once. With "forward" KL(teacher || student) the best student is the mean of what it is taught, which
for an exact teacher is the teacher's own prediction: nothing is gained. With "reverse" it is sharper than the mean. All
rounds, and the teacher's calls, are part of the training that is counted.

Shapes: B batch, L tokens, V symbols, M masked positions in row-major order.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.mdlm import MDLM, MDLMOptions
from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.schedules import stratified_times
from harness.errors import UserError
from harness.interface import Loss, Problem, Stage


@dataclass
class SDTTOptions(MDLMOptions):
    rounds: int = ranged(3, 1, 10)  # of distillation; each halves the number of steps
    first: int = ranged(16, 2, 1 << 16)  # steps of the teacher in the first round; a multiple of 2^rounds
    teacher_share: float = ranged(0.6, 0, 1, above=True, below=True)  # of the steps, for MDLM; rounds share the rest
    divergence: str = chosen("reverse", ("reverse", "forward"))  # KL(student || teacher), or KL(teacher || student)


def frozen(network: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: stored with the model, trained by nobody, and no parameters of it."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())
    return copied


class SDTT(MDLM):
    """Its network is the student of the last round; `network_of` gives that of any."""

    Options = SDTTOptions
    title = "MDLM + SDTT"

    def __init__(self, problem: Problem, options: SDTTOptions) -> None:
        super().__init__(problem, options)
        least = 2**options.rounds
        if options.first % least:
            near = max(1, round(options.first / least)) * least
            raise UserError(f"first={options.first} steps cannot be halved in {options.rounds} rounds; use {near}")
        self.kept = nn.ModuleList(frozen(self.network) for _ in range(options.rounds))
        self._round = 0

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        o = self.options
        share = (1.0 - o.teacher_share) / o.rounds
        return Stage("teacher", o.teacher_share), *(Stage(f"round {r}", share) for r in range(1, o.rounds + 1))

    def set_stage(self, name: str) -> None:
        self._round = [stage.name for stage in self.stages()].index(name)

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """What a stage ends with teaches the next one."""
        if self._round < self.options.rounds:
            self.kept[self._round].load_state_dict(self.network.state_dict())

    def network_of(self, number: int) -> nn.Module:
        """The network as it was after round `number`; 0 is MDLM."""
        return self.network if number == self.options.rounds else self.kept[number]

    @torch.no_grad()
    def taught(self, xt_BL: Tensor, masked_BL: Tensor, t_B: Tensor, generator: torch.Generator) -> Tensor:
        """log p (M, V) float32 of two steps of the teacher of this round, from times t of its grid."""
        teacher = self.kept[self._round - 1]
        step = 2 ** (self._round - 1) / self.options.first
        middle_B = t_B - step
        alpha_B, after_B = self.schedule.alpha(t_B), self.schedule.alpha(middle_B)
        log_p_MV = teacher(xt_BL, masked_BL, t_B.float()).whole().log_softmax(-1)
        u_BL = torch.rand(xt_BL.shape, generator=generator, dtype=torch.float64, device=xt_BL.device)
        flips_BL = masked_BL & (u_BL < ((after_B - alpha_B) / (1.0 - alpha_B))[:, None])
        x_BL, flipped_M = xt_BL.clone(), flips_BL[masked_BL]
        x_BL[flips_BL], _ = masked.draw_tokens(log_p_MV[flipped_M], generator)
        second_MV = teacher(x_BL, masked_BL & ~flips_BL, middle_B.float()).whole().log_softmax(-1)
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
