"""Tasks, what each needs, in which order they start, and what becomes of one whose worker stops.

Weights are rough numbers; they order the work and give the ETA until times are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TaskKey = tuple[str, str]
#: The text of a task that failed only because another one did.
NEEDS_FAILED = "needs a part that failed"


@dataclass
class Task:
    """One job (`job` is what a worker is sent), what must be done before it, its weight, and how far it is (0 to 1).

    `fixed` are seconds beside its weight. One whose worker process dies is tried again, `tries` times at the most.
    """

    key: TaskKey
    needs: tuple[TaskKey, ...] = ()
    weight: float = 1.0
    fixed: float = 0.0
    job: Any = None
    tries: int = 2
    measured: bool = False  # what its worker says of its progress is that of the whole task
    state: str = "waiting"  # running, done, failed
    begun: int = 0
    fraction: float = 0.0
    text: str = ""
    done: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        self.job = self.key if self.job is None else self.job

    def begin(self) -> None:
        """It goes to a worker."""
        self.state, self.text, self.done, self.total = "running", "", 0, 0
        self.begun += 1

    def say(self, text: str, done: int, total: int) -> None:
        """How far it is."""
        self.text, self.done, self.total = text, done, total
        if self.measured and total:
            self.fraction = done / total

    def fail(self, reason: str) -> None:
        self.state, self.text = "failed", reason


def critical_path(tasks: Mapping[TaskKey, Task], workers: float = math.inf) -> dict[TaskKey, float]:
    """Weight of the longest chain of tasks that starts at each, or of all that waits for it directly, shared out among the
    workers, where that is more: what holds up most must start first.
    """
    dependents: dict[TaskKey, list[TaskKey]] = {key: [] for key in tasks}
    for task in tasks.values():
        for need in task.needs:
            dependents[need].append(task.key)
    length: dict[TaskKey, float] = {}

    def measure(key: TaskKey) -> float:
        if key not in length:
            chain = max((measure(d) for d in dependents[key]), default=0.0)
            shared = sum(tasks[d].weight for d in dependents[key]) / workers
            length[key] = tasks[key].weight + max(chain, shared)
        return length[key]

    for key in tasks:
        measure(key)
    return length


def ready(tasks: Mapping[TaskKey, Task], workers: float = math.inf) -> list[Task]:
    """Waiting tasks whose needs are met, those that hold up most first."""
    done = {k for k, t in tasks.items() if t.state == "done"}
    able = [t for t in tasks.values() if t.state == "waiting" and set(t.needs) <= done]
    length = critical_path(tasks, workers)
    return sorted(able, key=lambda t: (-length[t.key], t.key))


def spread_failure(tasks: Mapping[TaskKey, Task]) -> None:
    """What needs a failed task cannot be done either."""
    changed = True
    while changed:
        changed = False
        failed = {k for k, t in tasks.items() if t.state == "failed"}
        for task in tasks.values():
            if task.state == "waiting" and failed & set(task.needs):
                task.fail(NEEDS_FAILED)
                changed = True


def unfinished(tasks: Mapping[TaskKey, Task]) -> bool:
    return any(t.state in ("waiting", "running") for t in tasks.values())
