"""Progress of a study on the terminal: what runs, how far, and when it will be done."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from harness.progress import clock, counted
from harness.study.schedule import JobKey, Task


class Display:
    """One line that is redrawn on a terminal; in a log, a line whenever `quiet` seconds have passed."""

    def __init__(self, tasks: dict[JobKey, Task], workers: int, stream: TextIO | None = None, quiet: float = 15.0):
        self.tasks, self.workers = tasks, workers
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.quiet = 0.5 if self.live else quiet
        self.began = self._said = time.monotonic()
        # Work found done must not count as work that went fast.
        self._head_start = self._finished()

    def _finished(self) -> float:
        return sum(t.weight * (1.0 if t.state in ("done", "failed") else t.fraction) for t in self.tasks.values())

    def eta(self) -> float | None:
        """Seconds to go at the pace so far; None while there is no pace yet."""
        elapsed, finished = time.monotonic() - self.began, self._finished() - self._head_start
        total = sum(t.weight for t in self.tasks.values()) - self._head_start
        if elapsed < 5 or finished < 0.01 * total:
            return None
        return elapsed * (total - finished) / finished

    def update(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._said < self.quiet:
            return
        self._said = now
        eta = self.eta()
        done = sum(t.state == "done" for t in self.tasks.values())
        running = [self._describe(t) for t in self.tasks.values() if t.state == "running"]
        head = f"[{clock(now - self.began)}, ETA {'...' if eta is None else clock(eta)}, {done}/{len(self.tasks)} jobs]"
        self._write(f"{head} " + " | ".join(running))

    @staticmethod
    def _describe(task: Task) -> str:
        name = "judge" if task.key[0] == "judge" else task.key[1]
        return f"{name}: {counted(task.text or task.key[0], task.extra.get('done', 0), task.extra.get('total', 0))}"

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
