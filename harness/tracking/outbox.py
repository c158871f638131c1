"""Keeps a study going while the tracking service is down: calls wait in order and are sent when it answers again."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

RETRY_SECONDS = 30.0


class Rejected(Exception):
    """The service answered and refused this one call; sending it again would not help."""


class Down(Exception):
    """The service did not answer."""


class Outbox:
    """Sends calls in the order in which they were made, each once it has gone through.

    A call that meets `Down` stays at the head of the queue, and further calls queue up behind it and are tried again no
    sooner than `retry_seconds` later, so that a dead server costs a study a few seconds now and then. A call that is
    `Rejected` is dropped. Each of the two is reported once, in one line.
    """

    def __init__(
        self,
        where: str,
        retry_seconds: float = RETRY_SECONDS,
        warn: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = where
        self.waiting: deque[Callable[[], Any]] = deque()
        self._retry_seconds = retry_seconds
        self._warn = warn or (lambda line: print(line, file=sys.stderr, flush=True))
        self._clock = clock
        self._not_before = float("-inf")
        self._said: set[str] = set()

    def send(self, call: Callable[[], Any]) -> None:
        """Queue `call` and send what can be sent."""
        self.waiting.append(call)
        if self._clock() >= self._not_before:
            self.flush()

    def flush(self) -> bool:
        """Send all that waits, now; False if the service is still down."""
        while self.waiting:
            try:
                self.waiting[0]()
            except Down as error:
                self._not_before = self._clock() + self._retry_seconds
                self._once(
                    "down",
                    f"warning: tracking at {self.where} does not answer ({error}); the study goes on and nothing is "
                    "lost: what is missing there is sent when it answers, or by running the same command again",
                )
                return False
            except Rejected as error:
                self._once(
                    "rejected",
                    f"warning: tracking at {self.where} refused a record ({error}); it is in the study's files",
                )
            self.waiting.popleft()
        return True

    def _once(self, kind: str, line: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._warn(line)
