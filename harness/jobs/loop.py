"""Works off tasks with a pool: hands out what is ready, passes on results, and treats every failure by one rule.

A worker process that dies costs its task a try; a `JobError` or a defect fails the task, and what needs it; bad input ends
everything. A pool whose workers only die is given up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from harness.errors import UserError
from harness.jobs.pool import Message, Pool
from harness.jobs.progress import Display
from harness.jobs.schedule import Task


class Work(ABC):
    """What there is to do. All of it runs in the parent process, which alone talks to stores and databases."""

    @abstractmethod
    def ready(self, free: int) -> list[Task]:
        """Up to `free` tasks that may start now, the most urgent first (more are left for later)."""

    @abstractmethod
    def unfinished(self) -> bool:
        """Whether anything is left to start or to wait for."""

    @abstractmethod
    def done(self, task: Task, value: Any) -> None:
        """A task ended well; `value` is what its worker returned."""

    @abstractmethod
    def failed(self, task: Task, message: Message) -> None:
        """A task ended for good otherwise: `message.kind` is "failed", "broke" or "died"."""

    def again(self, task: Task) -> None:  # noqa: B027 - most work has nothing to put back
        """A task whose worker died is about to be tried again."""

    def answer(self, task: Task, question: Any) -> Any:
        """The answer to what a task's worker asks."""
        raise NotImplementedError(f"{type(self).__name__} is asked nothing")

    def tick(self) -> None:  # noqa: B027 - most work has nothing to do on the side
        """Called about once a second."""


def work_off(work: Work, pool: Pool, display: Display, stop: Callable[[], bool] = lambda: False) -> None:
    """Run `work` to its end, or until `stop` says so; raises `UserError` for bad input and where workers only die."""
    run = _Run(work, display)
    while work.unfinished() and not stop():
        idle = pool.idle()
        for worker, task in zip(idle, work.ready(len(idle)), strict=False):
            task.begin()
            pool.assign(worker, task)
        pool.poll(1.0, run.handle)
        if run.refused:
            break
        if run.deaths > 3 * len(pool.workers) + 6:
            raise UserError(
                f"{run.deaths} workers died and no job ended in between ({run.last_death}); nothing is lost"
            )
        work.tick()
        display.update()
    display.update(force=True)
    if run.refused:
        raise UserError(run.refused[0])


class _Run:
    """What is known of the messages so far."""

    def __init__(self, work: Work, display: Display) -> None:
        self.work, self.display = work, display
        self.refused: list[str] = []
        self.deaths, self.last_death = 0, ""

    def handle(self, task: Task, message: Message) -> Any:
        """Act on one message; returns the answer where it asks something."""
        if message.kind == "progress":
            task.say(message.text, message.done, message.total)
            return None
        if message.kind == "ask":
            return self.work.answer(task, message.value)
        if message.kind == "died":
            self.deaths, self.last_death = self.deaths + 1, message.text
        else:
            self.deaths = 0
        self._ended(task, message)
        return None

    def _ended(self, task: Task, message: Message) -> None:
        name = " ".join(task.key)
        if message.kind == "done":
            task.state = "done"
            self.work.done(task, message.value)
        elif message.kind == "refused":
            task.fail(message.text)
            self.refused.append(message.text)
        elif message.kind == "died" and task.begun < task.tries:
            task.state = "waiting"
            self.display.say(f"{name}: {message.text}; trying again")
            self.work.again(task)
        else:
            again = f", {task.begun} times; the same command tries it again" if message.kind == "died" else ""
            task.fail(message.text.strip().splitlines()[-1] + again)
            self.display.say(f"{name} failed: {message.text.strip()}")
            self.work.failed(task, message)
