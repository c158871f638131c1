"""What a worker process is told at its start, how it is told to leave, and how it says what it does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.tuning.storage import BEAT, GRACE

Say = Callable[..., None]


@dataclass(frozen=True)
class Spec:
    """What a worker is to do: the arguments of `harness.tune`, and its place among the workers.

    It is handed over through a pipe: arguments may hold passwords, and files and command lines are read by others.
    """

    arguments: list[str]
    config_dirs: list[str] = field(default_factory=list)
    index: int = 0
    parent: int | None = None  # a worker that was started by another process dies with it
    run_id: str | None = None  # of the study's parent run in tracking
    beat: int = BEAT
    grace: int = GRACE
    load: str = "harness.tuning.load:load_tune"
    runner: str = "harness.tuning.trial:TrialRunner"

    def as_json(self) -> bytes:
        """One line that `of_json` reads."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_json(cls, line: bytes) -> Spec:
        return cls(**json.loads(line))


class Stopped(BaseException):
    """The worker was asked to leave (SIGTERM, or Ctrl-C where it was started by hand)."""


class Leave:
    """What a worker makes of the wish that it leaves: `Stopped` at once inside `at_once`, else at its next entry."""

    def __init__(self) -> None:
        self.asked = self._now = False

    def install(self, owned: bool) -> None:
        """Listen to SIGTERM, and to Ctrl-C unless a parent decides what that means."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN if owned else self._on_signal)

    def _on_signal(self, *_: object) -> None:
        first, self.asked = not self.asked, True
        if first and self._now:
            raise Stopped

    def check(self) -> None:
        """Raise `Stopped` where it was asked to leave before."""
        if self.asked:
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Here nothing is left in between by stopping."""
        self.check()
        self._now = True
        try:
            yield
        finally:
            self._now = False


def channel() -> Say:
    """JSON lines on what was standard output; what libraries print goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        with contextlib.suppress(OSError):
            stream.write(json.dumps(message) + "\n")
            stream.flush()

    return say
