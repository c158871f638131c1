"""Progress on the terminal: what runs, how far, and when it will be done."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from harness.jobs.schedule import Task, TaskKey
from harness.progress import clock, counted

#: The share of the work after which its own pace alone says how long the rest takes.
_TRUSTED = 0.2


class Display:
    """One line that is redrawn on a terminal; in a log, a line whenever `quiet` seconds have passed.

    `planned` is the number of tasks in all, where they are made on the way; `note` gives words for the line's head;
    `expected` are the seconds that all of it was thought to take, until its own pace is known.
    """

    def __init__(
        self,
        tasks: Mapping[TaskKey, Task],
        stream: TextIO | None = None,
        quiet: float = 15.0,
        planned: int = 0,
        note: Callable[[], str] = lambda: "",
        what: str = "jobs",
        expected: float | None = None,
    ):
        self.tasks, self.planned, self.note, self.what = tasks, planned, note, what
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.quiet = 0.5 if self.live else quiet
        self.began = self._said = time.monotonic()
        self.expected = self._left = expected
        # Work found done must not count as work that went fast.
        self._head_start = self._known = self._finished()
        self._known_at = self.began

    def _finished(self) -> float:
        return sum(t.weight * (1.0 if t.state in ("done", "failed") else t.fraction) for t in self.tasks.values())

    def _total(self) -> float:
        known = sum(t.weight for t in self.tasks.values())
        return known + max(0, self.planned - len(self.tasks)) * (known / len(self.tasks) if self.tasks else 1.0)

    def eta(self) -> float | None:
        """Seconds to go: as expected at first, then at the pace so far; None while neither is known.

        While nothing is reported it counts down: silence says nothing of the pace.
        """
        now = time.monotonic()
        if self._finished() != self._known or self._left is None:
            self._known, self._known_at = self._finished(), now
            self._left = self._by_pace(now - self.began)
        return None if self._left is None else max(0.0, self._left - (now - self._known_at))

    def _by_pace(self, elapsed: float) -> float | None:
        share = (self._known - self._head_start) / max(self._total() - self._head_start, 1e-9)
        expected = None if self.expected is None else self.expected * (1.0 - share)
        if elapsed < 5 or share < 0.01:
            return expected
        measured = elapsed * (1.0 - share) / share
        trust = 1.0 if expected is None else min(1.0, share / _TRUSTED)
        return trust * measured + (1.0 - trust) * (expected or 0.0)

    def update(self, force: bool = False) -> None:
        """Draw the line again, if it is time."""
        now = time.monotonic()
        if not force and now - self._said < self.quiet:
            return
        self._said = now
        eta = self.eta()
        done = sum(t.state == "done" for t in self.tasks.values())
        running = [self._describe(t) for t in self.tasks.values() if t.state == "running"]
        count = f"{done}/{max(self.planned, len(self.tasks))} {self.what}"
        head = ", ".join(filter(None, (clock(now - self.began), f"ETA {'...' if eta is None else clock(eta)}", count)))
        self._write(f"[{head}] " + " | ".join(filter(None, (self.note(), *running))))

    @staticmethod
    def _describe(task: Task) -> str:
        kind, name = task.key
        return f"{name}: {counted(task.text or kind, task.done, task.total)}"

    def _write(self, line: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + line[:width].ljust(width))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.live:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
        self.stream.write(line + "\n")
        self.stream.flush()
