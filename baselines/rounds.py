"""Distillation in rounds: a method is trained, then its network teaches itself, each round for steps twice as long.

The network at the end of a stage is kept, frozen, and teaches in the next one. All of it is training that is counted.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import ranged
from harness.errors import UserError
from harness.interface import Method, Stage
from harness.nn.networks import TokenNetwork


@dataclass
class RoundsOptions:
    rounds: int = ranged(3, 1, 10)  # of distillation; each halves the number of steps
    first: int = ranged(16, 2, 1 << 16)  # steps of the teacher in the first round; a multiple of 2^rounds
    teacher_share: float = ranged(
        0.6, 0, 1, above=True, below=True
    )  # of the steps, for the teacher; rounds share the rest


def frozen(network: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: stored with the model, trained by nobody, and no parameters of it."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())
    return copied


class Rounds(Method):
    """Before a method whose `network` is distilled, among the bases of a class; its `__init__` ends with `prepare_rounds`."""

    network: TokenNetwork

    def prepare_rounds(self) -> None:
        """Make room for the teachers; raises `UserError` where steps cannot be halved so often."""
        o = self.options
        least = 2**o.rounds
        if o.first % least:
            near = max(1, round(o.first / least)) * least
            raise UserError(f"first={o.first} steps cannot be halved in {o.rounds} rounds; use {near}")
        self.kept = nn.ModuleList(frozen(self.network) for _ in range(o.rounds))
        self._round = 0

    def stages(self) -> tuple[Stage, ...]:
        """Those of the method itself, then the rounds."""
        o = self.options
        own = [Stage(stage.name, o.teacher_share * stage.share) for stage in super().stages()]
        share = (1.0 - o.teacher_share) / o.rounds
        return *own, *(Stage(f"round {r}", share) for r in range(1, o.rounds + 1))

    def set_stage(self, name: str) -> None:
        super().set_stage(name)
        self._round = int(name.removeprefix("round ")) if name.startswith("round ") else 0

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """What a stage ends with teaches the next one."""
        if self._round < self.options.rounds:
            self.kept[self._round].load_state_dict(self.network.state_dict())

    def network_of(self, number: int) -> nn.Module:
        """The network as it was after round `number`; 0 is the teacher before all rounds."""
        return self.network if number == self.options.rounds else self.kept[number]

    @property
    def teacher(self) -> nn.Module:
        """That of the round."""
        return self.kept[self._round - 1]

    @property
    def step(self) -> float:
        """The time that the teacher's step takes in the round."""
        return 2 ** (self._round - 1) / self.options.first
