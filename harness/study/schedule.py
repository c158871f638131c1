"""Which jobs a study needs, in which order, and how much each weighs: judge, train, sample, score.

Weights are rough numbers of full network calls for one token; they order the work and give the ETA until times are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.study.cells import Cell
from harness.study.session import Session

JobKey = tuple[str, str]
JUDGE: JobKey = ("judge", "judge")
#: The text of a task that failed only because another one did.
NEEDS_FAILED = "needs a part that failed"
#: A training step costs three forward passes of a batch, and runs in eager mode where sampling may be compiled.
_TRAIN, _SAMPLE, _SCORE, _LATENT_EXTRA = 4.5, 1.0, 12.0, 1.5


@dataclass
class Task:
    """One job, what must be done before it, its weight, and how far it is (0 to 1)."""

    key: JobKey
    needs: tuple[JobKey, ...]
    weight: float
    fraction: float = 0.0
    state: str = "waiting"  # running, done, failed
    tries: int = 0
    text: str = ""
    extra: dict[str, float] = field(default_factory=dict)


def make_tasks(session: Session, cells: list[Cell], data: Cell) -> dict[JobKey, Task]:
    """All tasks by key."""
    s, c = session.cfg.study, session.cfg.scale
    judge = Task(JUDGE, (), _TRAIN * c.steps * c.batch * c.length * 0.8)
    tasks = [judge]
    first: dict[object, JobKey] = {}  # who trains the weights that several cells share
    for cell in cells:
        tokens = s.samples * c.length
        train: JobKey = ("train", cell.name)
        sample: JobKey = ("sample", cell.name)
        trained = cell.trained
        more = _LATENT_EXTRA if cell.role == "method" else 1.0
        owner = first.setdefault(cell.home, train)
        cost = more * _TRAIN * c.steps * c.batch * c.length if trained and owner == train else tokens
        tasks.append(Task(train, () if owner == train else (owner,), cost))
        tasks.append(Task(sample, (train,), _SAMPLE * tokens * sum(max(p.nfe, 1) for p in cell.parts)))
        tasks.append(Task(("score", cell.name), (sample, JUDGE), _SCORE * tokens * len(cell.parts)))
    tasks.append(Task(("score", data.name), (JUDGE,), _SCORE * s.samples * c.length))
    return {t.key: t for t in tasks}


def critical_path(tasks: dict[JobKey, Task]) -> dict[JobKey, float]:
    """Weight of the longest chain of tasks that starts at each: what waits longest must start first."""
    dependents: dict[JobKey, list[JobKey]] = {key: [] for key in tasks}
    for task in tasks.values():
        for need in task.needs:
            dependents[need].append(task.key)
    length: dict[JobKey, float] = {}

    def measure(key: JobKey) -> float:
        if key not in length:
            length[key] = tasks[key].weight + max((measure(d) for d in dependents[key]), default=0.0)
        return length[key]

    for key in tasks:
        measure(key)
    return length


def ready(tasks: dict[JobKey, Task]) -> list[Task]:
    """Waiting tasks whose needs are met, the longest chain first."""
    done = {k for k, t in tasks.items() if t.state == "done"}
    able = [t for t in tasks.values() if t.state == "waiting" and set(t.needs) <= done]
    length = critical_path(tasks)
    return sorted(able, key=lambda t: (-length[t.key], t.key))


def spread_failure(tasks: dict[JobKey, Task]) -> None:
    """What needs a failed task cannot be done either."""
    changed = True
    while changed:
        changed = False
        failed = {k for k, t in tasks.items() if t.state == "failed"}
        for task in tasks.values():
            if task.state == "waiting" and failed & set(task.needs):
                task.state, task.text, changed = "failed", NEEDS_FAILED, True


def unfinished(tasks: dict[JobKey, Task]) -> bool:
    return any(t.state in ("waiting", "running") for t in tasks.values())
