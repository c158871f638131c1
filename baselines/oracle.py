"""The oracle: the exact conditionals of a task in MDLM's sampler, which lose what drawing positions apart loses.

Shapes: B batch, L tokens, V symbols (id V is the mask), N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.config.fields import chosen
from harness.diffusion.schedules import TOKEN_SCHEDULES
from harness.interface import Bound, Problem, Stage
from harness.tasks.base import ExactTask, require_task


@dataclass
class OracleOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)


class ExactDenoiser(nn.Module):
    """log p(x_i | shown tokens) of the task at the selected positions, (M, V) float64, called like a token network."""

    def __init__(self, task: ExactTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, x_BL: Tensor, select_BL: Tensor, t_B: Tensor | None = None) -> Tensor:
        return self.task.conditionals(x_BL, x_BL != self.task.vocab_size)[select_BL]


class Oracle(MaskedModel):
    """No masked model that draws the positions of a step independently can know more than this one.

    `p(x_i | shown tokens)` minimises the expected cross-entropy of each step, so no factorised denoiser has a smaller
    KL(p || q) for declared paths on the same schedule: for that it is the floor. Another schedule loses less (the sampler
    `best_grid`), and E_q[-log p] has no such law: a model that gives up diversity can score less, which is what the metric
    `diversity` is for. Nothing is trained.
    """

    Options = OracleOptions
    title = "Oracle"
    role = "floor"

    def __init__(self, problem: Problem, options: OracleOptions) -> None:
        super().__init__(problem, options)
        self.task = require_task(problem.truth, "method=oracle")
        self.network = ExactDenoiser(self.task)
        self.title = f"Oracle, {options.schedule} schedule"

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def networks(self) -> Mapping[str, nn.Module]:
        return {"token": self.network}

    def denoise(self, x_NL: Tensor, select_NL: Tensor, t_N: Tensor) -> Tensor:
        return self.network(x_NL, select_NL, t_N)

    def accepts_temperature(self) -> bool:
        """No: a sharpened truth is no floor of anything."""
        return False

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """-log p(x): every order of the chain rule gives it, so it is the oracle's NELBO in the limit of many steps."""
        return Bound(-self.task.log_prob(x_BL).double(), "exact log-likelihood of the data's own law", exact=True)
