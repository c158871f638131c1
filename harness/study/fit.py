"""Training one model of a study in this process: its plan, the loop, and the file of its averaged weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from harness.interface import Method
from harness.study import match
from harness.study.cells import Weights
from harness.study.sampling import compile_trunks, say_uncompiled
from harness.study.session import Session
from harness.training import checkpoint, loop
from harness.training.distributed import Group


def fit(
    session: Session, weights: Weights, method: Method, progress: Callable[[str, int, int], None],
    group: Group | None = None, on_validation: Callable[[int, dict[str, float]], None] | None = None,
) -> None:  # fmt: skip
    """Train `method` to the end and write its averaged weights; as one process of `group`, if given."""
    cfg, group = session.cfg, group or Group()
    plan = match.begin(session, weights, method, progress, group)  # before compiling: a graph hides its FLOPs
    scale = dataclasses.replace(cfg.scale, steps=plan.steps)
    if session.numerics.compile_training:
        compile_trunks([method])
    job = loop.Job(
        method, session.data, scale, cfg.train, session.numerics, weights.seed, weights.folder, progress, on_validation,
        group,
    )  # fmt: skip
    weights.folder.mkdir(parents=True, exist_ok=True)
    done = _trained(job, weights.name) if session.numerics.compile_training else loop.train(job)
    if not group.leads:
        return
    meta = {
        "method": weights.method,
        "seed": weights.seed,
        "key": weights.key,
        "config": session.tree["methods"][weights.method],
        "made": plan.made,
    }
    done["train_seconds"] += plan.fit_seconds
    checkpoint.save_tensors(weights.model, dict(method.state_dict()), meta | done)
    weights.checkpoint.unlink(missing_ok=True)


def _trained(job: loop.Job, name: str) -> dict[str, float]:
    """What `loop.train` gives, compiled where the toolchain can; else a line says why not, and it begins again without."""
    from torch._dynamo.exc import TorchDynamoException

    begun = {key: value.clone() for key, value in job.method.state_dict().items()}
    try:
        return loop.train(job)
    except TorchDynamoException as error:
        if job.group.leads:
            say_uncompiled(name, "training", error)
        job.method.load_state_dict(begun)
        with torch.compiler.set_stance("force_eager"):
            return loop.train(job)
