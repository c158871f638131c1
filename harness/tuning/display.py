"""Progress of a tuning: the best value so far, trials done, pruned and failed, what runs, and when it will be done."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.tuning.claims import tally
from harness.tuning.samplers import CONSTRAINTS


def feasible(trial: FrozenTrial) -> bool:
    """Whether a completed trial met all constraints."""
    return trial.state == TrialState.COMPLETE and all(c <= 0 for c in trial.user_attrs.get(CONSTRAINTS) or [])


def front(trials: list[FrozenTrial], directions: list[StudyDirection]) -> list[FrozenTrial]:
    """The feasible trials that no other feasible trial beats in every objective; with one objective, the best."""
    able = [t for t in trials if feasible(t)]
    if not able:
        return []
    sign = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
    cost_TK = np.array([t.values for t in able]) * sign
    if len(sign) == 1:
        return [able[int(cost_TK[:, 0].argmin())]]
    no_worse_TT = (cost_TK[:, None, :] <= cost_TK[None, :, :]).all(-1)
    better_TT = (cost_TK[:, None, :] < cost_TK[None, :, :]).any(-1)
    beaten_T = (no_worse_TT & better_TT).any(0)
    return [trial for trial, beaten in zip(able, beaten_T, strict=True) if not beaten]


def best_so_far(trials: list[FrozenTrial], directions: list[StudyDirection]) -> str:
    """In words: the best feasible trial, or how many there are on the front, or that there is none."""
    found = front(trials, directions)
    if found and len(directions) == 1:
        return f"best {found[0].values[0]:.4g} (trial {found[0].number})"
    if found:
        return f"{len(found)} trial{'s' if len(found) > 1 else ''} on the front"
    done = any(t.state == TrialState.COMPLETE for t in trials)
    return "none meets the constraints yet" if done else "none done yet"


class Display:
    """One line that is redrawn on a terminal; in a log, a line whenever `quiet` seconds have passed."""

    def __init__(
        self, wanted: int, directions: list[StudyDirection], stream: TextIO | None = None, quiet: float = 15.0
    ):
        self.wanted, self.directions = wanted, directions
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._quiet = 0.5 if self.live else quiet
        self._began = time.monotonic()
        self._said = float("-inf")
        self._head_start: int | None = None

    def line(self, trials: list[FrozenTrial], running: list[str]) -> str:
        """The line for these trials; `running` are words on what each worker does."""
        from harness.jobs.progress import (
            clock,  # not at the top: workers, which show nothing, would import all it needs
        )

        now = tally(trials)
        if self._head_start is None:  # trials found done must not count as trials that went fast
            self._head_start = now.counted
        elapsed, ended = time.monotonic() - self._began, now.counted - self._head_start
        left = max(0, self.wanted - now.counted)
        eta = clock(elapsed * left / ended) if ended else ("0:00" if not left else "...")
        parts = [f"{now.counted}/{self.wanted} trials"]
        parts += [f"{count} {word}" for word, count in (("pruned", now.pruned), ("failed", now.failed)) if count]
        parts += [f"{now.running} running"] if now.running else []
        head = f"[{clock(elapsed)}, ETA {eta}, {', '.join(parts)}] {best_so_far(trials, self.directions)}"
        return " | ".join([head, *running])

    def due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self._said >= self._quiet

    def update(self, trials: list[FrozenTrial], running: list[str], last: bool = False) -> None:
        """Show how far it is."""
        self._said = time.monotonic()
        line = self.line(trials, running)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + line[:width].ljust(width) + ("\n" if last else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.live:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
        self.stream.write(line + "\n")
        self.stream.flush()
