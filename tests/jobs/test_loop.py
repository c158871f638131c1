"""How a job whose worker dies is treated, and what is said of it."""

from __future__ import annotations

import io

from harness.jobs.loop import Work, _Run
from harness.jobs.pool import Message
from harness.jobs.progress import Display
from harness.jobs.schedule import Task


class _Nothing(Work):
    def __init__(self) -> None:
        self.ended: list[Message] = []

    def ready(self, free: int) -> list[Task]:
        return []

    def unfinished(self) -> bool:
        return False

    def done(self, task: Task, value: object) -> None:
        """Nothing is kept."""

    def failed(self, task: Task, message: Message) -> None:
        self.ended.append(message)


def test_a_job_whose_worker_is_killed_twice_says_that_the_same_command_tries_again():
    screen, work, task = io.StringIO(), _Nothing(), Task(("train", "mdlm/seed0"))
    run, killed = _Run(work, Display({}, screen)), Message("died", "worker process ended with exit code -9")
    task.begin()
    run.handle(task, killed)
    assert task.state == "waiting" and "train mdlm/seed0: worker process ended with" in screen.getvalue()
    task.begin()
    run.handle(task, killed)
    assert task.state == "failed" and work.ended == [killed]
    assert task.text == "worker process ended with exit code -9, 2 times; the same command tries it again"
    other = Task(("score", "mdlm/seed0"))
    other.begin()
    run.handle(other, Message("broke", "Traceback ...\nZeroDivisionError: by zero"))
    assert other.text == "ZeroDivisionError: by zero"
