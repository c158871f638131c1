"""How many steps a method trains, and what it learns before the first one: settled once for a model, in its `plan.json`.

With `scale.match=tokens` every method trains `scale.steps` steps. With `scale.match=flops` each trains as many as cost what
`scale.steps` steps of the plain masked denoiser cost, less what its `fit` took: a method of several networks gets fewer.
FLOPs are those of matrix products and convolutions in torch, whatever the device; numpy's are not seen.

Shapes: B batch, L tokens, N sequences.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from harness.interface import Method
from harness.store import read_json, write_json
from harness.study.budget import count_flops, reference_step_flops, stage_flops
from harness.study.cells import Weights
from harness.study.made import made_by
from harness.study.session import Session
from harness.training import batches
from harness.training.distributed import Group

#: The LM head runs at the masked positions, so one draw is noisy. The keys do not depend on the training seed: all methods
#: and seeds of a study have the same budget, and the plain masked denoiser trains exactly `scale.steps` steps.
_DRAWS = tuple((0, 4, draw) for draw in range(4))


@dataclass(frozen=True)
class TrainPlan:
    """`steps` of training after a fit of `fit_flops` FLOPs that took `fit_seconds`.

    Where the steps follow from their cost: FLOPs of a step in each stage, their mean by the stages' shares, and the FLOPs
    that all of training may cost. `made` says by which code (see `harness.study.made`).
    """

    steps: int
    fit_flops: int = 0
    stage_flops: tuple[int, ...] = ()
    step_flops: float | None = None
    budget_flops: int | None = None
    fit_seconds: float = 0.0
    made: dict[str, Any] = field(default_factory=dict)


def begin(
    session: Session, weights: Weights, method: Method, progress: Callable[[str, int, int], None], group: Group
) -> TrainPlan:
    """Fit `method` and settle its steps before the first one; of several processes each fits, and all train equally long.

    Where there is a checkpoint both are done already: its state holds what was fitted. Raises `UserError` where the budget
    is too small.
    """
    device = session.numerics.device
    if weights.plan.exists() and weights.checkpoint.exists():
        plan = read_plan(weights)
    else:
        method.to(device)
        fit_flops, began = 0, time.monotonic()
        if fits(method):
            progress("fit", 0, 0)
            train_NL = session.data.splits["train"]
            rows = batches.budget_rows(len(train_NL), session.cfg.scale, weights.seed)
            fit_flops = count_flops(lambda: method.fit(np.asarray(train_NL[rows])))
        fit_seconds = time.monotonic() - began
        plan = settle(session, weights.method, method, fit_flops)
        plan = dataclasses.replace(plan, fit_seconds=fit_seconds, made=made_by(session, "train", weights))
        if group.leads:
            write_json(weights.plan, dataclasses.asdict(plan))
    steps = torch.tensor([plan.steps if group.leads else 0], device=device)
    group.add(steps)
    return dataclasses.replace(plan, steps=int(steps))


def fits(method: Method) -> bool:
    """Whether the method learns anything before its first step."""
    return type(method).fit is not Method.fit


def read_plan(weights: Weights) -> TrainPlan:
    """What `begin` settled."""
    known = read_json(weights.plan)
    return TrainPlan(**known | {"stage_flops": tuple(known["stage_flops"])})


def settle(session: Session, name: str, method: Method, fit_flops: int = 0) -> TrainPlan:
    """The plan of `method`, which the study calls `name` and whose fit took `fit_flops`; `method` is left as it is.

    Raises `UserError` where the budget does not cover the fit, and where a step has no FLOPs that could be counted.
    """
    scale, train = session.cfg.scale, session.cfg.train
    if scale.match == "tokens":
        return TrainPlan(scale.steps, fit_flops)
    x_BL = first_part(session)
    # A loss may keep what it saw, so another copy is counted.
    copy = session.build(name).to(session.numerics.device).train()
    copy.load_state_dict(method.state_dict())
    counted = stage_flops(copy, train, x_BL, _DRAWS)
    mean = sum(stage.share * flops for stage, flops in zip(method.stages(), counted, strict=True))
    reference = reference_step_flops(session.problem, train, x_BL, _DRAWS)
    budget = scale.steps * reference
    if not mean:
        raise UserError(f"scale.match=flops: a step of {name} has no FLOPs to count; use scale.match=tokens")
    if fit_flops > budget:
        raise UserError(
            f"scale.match=flops: the fit of {name} alone takes {fit_flops:.3g} FLOPs, and scale.steps={scale.steps} allows "
            f"{budget:.3g} in all; use scale.match=tokens or scale.steps={math.ceil(fit_flops / reference) + 1} or more"
        )
    steps = max(1, round((budget - fit_flops) / mean))
    return TrainPlan(steps, fit_flops, counted, mean, budget)


def first_part(session: Session) -> Tensor:
    """Training sequences (B, L), as many as a part of a batch has, on which steps are counted."""
    count = session.cfg.scale.batch // session.cfg.train.accumulate
    return torch.from_numpy(session.data.some("train", count)).to(session.numerics.device)
