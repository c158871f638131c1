"""Distillation in rounds: a method is trained, then its network teaches itself, each round for steps twice as long.

The network at the end of a stage is kept, frozen, and teaches in the next one. All of it is training that is counted.

Shapes: B batch, L tokens, V symbols, M masked positions in row-major order.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import TokenSchedule, stratified_times
from harness.errors import UserError
from harness.interface import Loss, Method, Stage
from harness.nn.slices import Logits


@dataclass
class RoundsOptions:
    rounds: int = ranged(3, 1, 10)  # of distillation; each halves the number of steps
    first: int = ranged(16, 2, 1 << 16)  # steps of the teacher in the first round; a multiple of 2^rounds
    teacher_share: float = ranged(
        0.6, 0, 1, above=True, below=True
    )  # of the steps, for the teacher; rounds share the rest


@dataclass
class MaskedRoundsOptions(RoundsOptions):
    divergence: str = chosen("reverse", ("reverse", "forward"))  # KL(student || teacher), or KL(teacher || student)


def frozen(network: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: stored with the model, trained by nobody, and no parameters of it."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())
    return copied


class Rounds(Method):
    """Before the method that is distilled, among the bases of a class; its `__init__` ends with `prepare_rounds`."""

    #: The attribute that is the student's network, and the method's own stage that trains what the rounds train.
    student, student_stage = "network", "all"

    def prepare_rounds(self) -> None:
        """Make room for the teachers; raises `UserError` where steps cannot be halved so often."""
        o = self.options
        least = 2**o.rounds
        if o.first % least:
            near = max(1, round(o.first / least)) * least
            raise UserError(f"first={o.first} steps cannot be halved in {o.rounds} rounds; use {near}")
        self.kept = nn.ModuleList(frozen(getattr(self, self.student)) for _ in range(o.rounds))
        self._round = 0
        self.valid_NL = np.empty((0, self.problem.length), dtype=np.int64)  # what a round may be chosen on

    def settle(self, valid_NL: np.ndarray) -> None:
        super().settle(valid_NL)
        self.valid_NL = valid_NL

    def stages(self) -> tuple[Stage, ...]:
        """Those of the method itself, then the rounds."""
        o = self.options
        own = [Stage(stage.name, o.teacher_share * stage.share) for stage in super().stages()]
        share = (1.0 - o.teacher_share) / o.rounds
        return *own, *(Stage(f"round {r}", share) for r in range(1, o.rounds + 1))

    def set_stage(self, name: str) -> None:
        self._round = int(name.removeprefix("round ")) if name.startswith("round ") else 0
        super().set_stage(self.student_stage if self._round else name)

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """What a stage ends with teaches the next one."""
        super().calibrate(x_NL)
        if self._round < self.options.rounds:
            self.kept[self._round].load_state_dict(self.network_of(self.options.rounds).state_dict())

    def network_of(self, number: int) -> nn.Module:
        """The network as it was after round `number`; 0 is the teacher before all rounds."""
        return getattr(self, self.student) if number == self.options.rounds else self.kept[number]

    def checked_round(self, number: int) -> nn.Module:
        """The same; raises `UserError` where there is no such round."""
        rounds = self.options.rounds
        if number > rounds:
            raise UserError(f"round={number}: there are {rounds} rounds; use {rounds}")
        return self.network_of(number)

    @property
    def teacher(self) -> nn.Module:
        """That of the round."""
        return self.kept[self._round - 1]

    @property
    def step(self) -> float:
        """The time that the teacher's step takes in the round."""
        return 2 ** (self._round - 1) / self.options.first


class MaskedRounds(Rounds):
    """Of a masked denoiser: what two steps of the teacher predict is what the student is to predict at once.

    Deschenaux & Gulcehre 2024, arXiv 2410.21035. Options are `MaskedRoundsOptions`.
    """

    schedule: TokenSchedule

    @torch.no_grad()
    def taught(
        self, teacher: Denoiser, xt_BL: Tensor, masked_BL: Tensor, t_B: Tensor, generator: torch.Generator
    ) -> Tensor:
        """log p (M, V) float32 of two steps of the teacher, from times t of the round's grid.

        Of each masked position: in the step that revealed it, or else in the second.
        """
        middle_B = t_B - self.step
        alpha_B, after_B = self.schedule.alpha(t_B), self.schedule.alpha(middle_B)
        log_p_MV = Logits.of(teacher(xt_BL, masked_BL, t_B.float())).whole().log_softmax(-1)
        u_BL = torch.rand(xt_BL.shape, generator=generator, dtype=torch.float64, device=xt_BL.device)
        flips_BL = masked_BL & (u_BL < ((after_B - alpha_B) / (1.0 - alpha_B))[:, None])
        x_BL, flipped_M = xt_BL.clone(), flips_BL[masked_BL]
        x_BL[flips_BL], _ = masked.draw_tokens(log_p_MV[flipped_M], generator)
        second_MV = Logits.of(teacher(x_BL, masked_BL & ~flips_BL, middle_B.float())).whole().log_softmax(-1)
        log_p_MV[~flipped_M] = second_MV
        return log_p_MV

    def round_loss(self, teacher: Denoiser, student: Denoiser, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Nats between student and teacher for each masked token."""
        steps = self.options.first // 2**self._round
        t_B = torch.ceil(stratified_times(len(x_BL), generator) * steps) / steps
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        log_p_MV = self.taught(teacher, xt_BL, masked_BL, t_B, generator)
        log_q_MV = Logits.of(student(xt_BL, masked_BL, t_B.float())).whole().log_softmax(-1)
        apart_MV = log_q_MV - log_p_MV
        apart_MV = log_q_MV.exp() * apart_MV if self.options.divergence == "reverse" else log_p_MV.exp() * -apart_MV
        total = apart_MV.sum() / max(1, len(apart_MV))
        return Loss(total, {f"nats_from_teacher_{self._round}": total.detach()})
