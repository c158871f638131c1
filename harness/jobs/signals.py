"""What ends a command from outside: Ctrl-C, a scheduler's SIGTERM, the SIGHUP of a terminal that is closed."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

_STOP = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
#: Of these, what a terminal sends to a command's workers as well.
_TERMINAL = [number for number in _STOP if number != signal.SIGTERM]
#: Seconds in which another signal is the same wish once more: what the first set in motion is to end whole.
_PATIENCE = 10.0


class Stopped(KeyboardInterrupt):
    """One of these signals came; `code` is the exit code that a shell gives to it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Such a signal raises `Stopped` inside the block. Once one has, they are ignored: the process is about to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if time.monotonic() - stopped > _PATIENCE:
            stopped = time.monotonic()
            raise Stopped(number)

    # Under `nohup`, and in a shell's background, some are ignored from the start.
    before = {s: signal.signal(s, stop) for s in _STOP if signal.getsignal(s) not in (signal.SIG_IGN, None)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if stopped == -math.inf else signal.SIG_IGN)


@contextmanager
def unheard() -> Iterator[None]:
    """A process that is started inside the block never hears what a terminal sends: its parent decides what that means.

    From its first moment on: it takes seconds to import what it needs.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # starting it ends the block of its own signals, and so of ours
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
