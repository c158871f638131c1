"""Training one model of a study in this process: its plan, the loop, and the file of its averaged weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from harness.interface import Method
from harness.study import match
from harness.study.cells import Weights
from harness.study.session import Session
from harness.training import checkpoint, compiled, loop
from harness.training.distributed import Group
from harness.training.shards import gathered


def fit(
    session: Session, weights: Weights, method: Method, progress: Callable[[str, int, int], None],
    group: Group | None = None, on_validation: Callable[[int, dict[str, float]], None] | None = None,
) -> None:  # fmt: skip
    """Train `method` to the end and write its averaged weights; as one process of `group`, if given."""
    cfg, group = session.cfg, group or Group()
    plan = match.begin(session, weights, method, progress, group)
    scale = dataclasses.replace(cfg.scale, steps=plan.steps)
    job = loop.Job(
        method, session.data, scale, cfg.train, session.numerics, weights.seed, weights.folder, progress, on_validation,
        group,
    )  # fmt: skip
    weights.folder.mkdir(parents=True, exist_ok=True)
    done = compiled.train(job, session.cache) if session.numerics.compile_training else loop.train(job)
    state = gathered(method.state_dict(), group.leads)
    if not group.leads:
        return
    meta = session.described(weights.method, weights.seed) | {"key": weights.key, "made": plan.made}
    done["train_seconds"] += plan.fit_seconds
    checkpoint.save_tensors(weights.model, state, meta | done)
    weights.checkpoint.unlink(missing_ok=True)
