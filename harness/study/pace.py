"""How long the tasks of a study take here, from one short timing of the network that all methods share."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from harness.jobs.schedule import Task
from harness.nn.networks import TokenNetwork
from harness.study.session import Session

_SEQUENCES, _REPEATS = 32, 6
#: Seconds in which a worker process comes up: Python, torch and the data.
_START = 6.0


def seconds_per_weight(session: Session) -> float:
    """Seconds of one call of the plain masked denoiser for one token: the unit of tasks' weights."""
    problem, numerics = session.problem, session.numerics
    network = TokenNetwork(problem.shape, problem.vocab_size).to(numerics.device).eval()
    x_BL = torch.zeros((_SEQUENCES, problem.length), dtype=torch.int64, device=numerics.device)
    took = []
    torch.set_num_threads(session.cfg.compute.threads)  # as in a worker
    with torch.inference_mode(), numerics.autocast():
        for _ in range(_REPEATS):
            began = time.perf_counter()
            network(x_BL)
            took.append(time.perf_counter() - began)
    return min(took) / x_BL.numel()


def expected_seconds(tasks: Iterable[Task], seconds: float, workers: int) -> float:
    """Of all tasks that are open, shared out among the workers, each of which has to come up."""
    return _START + seconds * sum(task.weight for task in tasks if task.state == "waiting") / workers
