"""How long the tasks of a study take here, from one short timing of the network that all methods share.

What does not depend on a network's size (starting, importing a metric) is in seconds of a common core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from harness.jobs.schedule import Task, TaskKey
from harness.nn.networks import TokenNetwork
from harness.nn.slices import unshared
from harness.study.session import Session

_SEQUENCES, _ENOUGH = 32, 1.0
#: Seconds in which workers come up (Python, torch, the data) and in which the parent writes the report.
_START, _END = 6.0, 6.0
_FIRST_SCORE = 2.5  # the libraries of metrics, in each worker


def price(session: Session, tasks: Mapping[TaskKey, Task], workers: int) -> float:
    """Turn the tasks' weights into seconds; returns those until all that wait are done and the report is written.

    Where others use the same cores, as many more as this process has to wait for its own timing.
    """
    each, crowd = _timing(session)
    for task in tasks.values():
        task.weight = crowd * (each * task.weight + task.fixed)
    seconds = [task.weight for task in tasks.values() if task.state == "waiting"]
    # Workers share them out, each taking a whole one at a time.
    return crowd * (_START + _FIRST_SCORE + _END) + max([sum(seconds) / workers, *seconds])


def _timing(session: Session) -> tuple[float, float]:
    """Seconds that a call of the plain masked denoiser takes for one token, and how many pass for each that is worked on."""
    problem, numerics = session.problem, session.numerics
    network = TokenNetwork(problem.shape, problem.vocab_size).to(numerics.device).eval()
    x_BL = torch.zeros((_SEQUENCES, problem.length), dtype=torch.int64, device=numerics.device)
    torch.set_num_threads(session.cfg.compute.threads)  # as in a worker
    on_cpu, calls = numerics.device == "cpu", 0
    with torch.inference_mode(), numerics.autocast(), unshared():
        network(x_BL).whole()
        began, worked = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < _ENOUGH:
            network(x_BL).whole().sum().item()
            calls += 1
    passed, worked = time.perf_counter() - began, time.process_time() - worked
    used = worked / max(1, session.cfg.compute.threads) if on_cpu else passed
    return used / calls / x_BL.numel(), max(1.0, passed / used)
