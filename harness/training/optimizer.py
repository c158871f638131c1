"""AdamW (Loshchilov and Hutter, 2019) and the shape of its rate, for everything that is trained here."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.config.schema import TrainConfig


def adamw(
    module: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, decays: Callable[[str, Tensor], bool]
) -> torch.optim.AdamW:
    """Over all parameters of `module`; those of which `decays` is true, given name and parameter, decay."""
    named = list(module.named_parameters())
    some, rest = [p for n, p in named if decays(n, p)], [p for n, p in named if not decays(n, p)]
    groups = [{"params": some, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of all groups from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def rate_at(step: int, steps: int, peak: float, warm: int, final: float, decay: str = "cosine") -> float:
    """Linear warm-up to `peak` over `warm` steps, then a cosine or linear decay to `final` of it, or none."""
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[decay]
    return peak * (final + (1 - final) * shape) if decay != "constant" else peak


def learning_rate(train: TrainConfig, peak: float, step: int, steps: int) -> float:
    """The rate in step `step` of a stage of `steps`."""
    return rate_at(step, steps, peak, max(1, round(train.warmup * steps)), train.final_lr, train.decay)
