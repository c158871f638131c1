"""The worker processes of one command: started, listened to, replaced when they die, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import EXIT_CODE, UserError
from harness.tuning.process import Spec

#: Seconds that a worker has to put its trial back when it is asked to leave.
LEAVE_SECONDS = 10.0


@dataclass
class Hand:
    """One worker: its process, what it said last, and when it may be started again."""

    spec: Spec
    gpu: str | None
    process: subprocess.Popen[bytes] | None = None
    rest: bytes = b""
    trial: int | None = None
    text: str = ""
    said: bool = False  # anything, since its start
    begin_at: float = 0.0

    def describe(self) -> str:
        """What it does, for the progress line."""
        if self.trial is None:
            return f"worker {self.spec.index}: {self.text}" if self.text else ""
        return f"{self.trial}: {self.text}"


class Crew:
    """Workers of one machine."""

    def __init__(self, spec: Spec, count: int, gpus: list[str] | None, folder: Path) -> None:
        """`count` workers that take turns in having `gpus`; `folder` gets their logs."""
        self.folder = folder
        self.hands = [Hand(replace(spec, index=i), gpus[i % len(gpus)] if gpus else None) for i in range(count)]
        self._selector = selectors.DefaultSelector()
        self.deaths = 0  # since the last trial that ended
        self.unable: list[str] = []  # since then, the last words of those that ended by themselves without a trial
        for hand in self.hands:
            self._start(hand)

    def _start(self, hand: Hand) -> None:
        environment = dict(os.environ)
        if hand.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = hand.gpu
        with open(self._log(hand), "ab") as log:
            hand.process = subprocess.Popen(
                [sys.executable, "-m", "harness.tuning.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        with contextlib.suppress(BrokenPipeError), hand.process.stdin as pipe:
            pipe.write(hand.spec.as_json())
        hand.rest, hand.trial, hand.text, hand.said = b"", None, "", False
        os.set_blocking(hand.process.stdout.fileno(), False)
        self._selector.register(hand.process.stdout, selectors.EVENT_READ, hand)

    def _log(self, hand: Hand) -> Path:
        """What it, and the libraries that it uses, have to say."""
        return self.folder / f"{socket.gethostname()}-{os.getpid()}-{hand.spec.index}.log"

    def poll(self, seconds: float, say: Callable[[str], None]) -> None:
        """Listen for this long; replace workers that died. Raises `UserError` where one was refused its work."""
        for key, _ in self._selector.select(seconds):
            self._read(key.data, say)
        for hand in self.hands:
            if hand.process is not None and hand.process.poll() is not None:
                self._ended(hand, say)
            elif hand.process is None and hand.begin_at and time.monotonic() >= hand.begin_at:
                hand.begin_at = 0.0
                self._start(hand)

    def _read(self, hand: Hand, say: Callable[[str], None]) -> None:
        try:
            content = os.read(hand.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        if not content:  # it closes its channel as it ends
            self._selector.unregister(hand.process.stdout)
            return
        *lines, hand.rest = (hand.rest + content).split(b"\n")
        hand.said = hand.said or bool(lines)
        for message in map(json.loads, lines):
            if "failed" in message:
                say(f"trial {message['failed']} failed: {message['reason']}")
            if "ended" in message:
                hand.trial, hand.text, self.deaths, self.unable = None, "", 0, []
            elif "trial" in message:
                count = f" {message['done']}/{message['total']}" if message["total"] else ""
                hand.trial, hand.text = message["trial"], message["text"] + count

    def _ended(self, hand: Hand, say: Callable[[str], None]) -> None:
        process, trial = hand.process, hand.trial
        code, hand.process, hand.trial = process.returncode, None, None
        if process.stdout in {key.fileobj for key in self._selector.get_map().values()}:
            self._selector.unregister(process.stdout)
        process.stdout.close()
        if code == 0:
            return
        last = self.last_words(hand)
        if code == EXIT_CODE and last.startswith("error: "):
            raise UserError(last.removeprefix("error: "))
        self.deaths += 1
        if code > 0 and trial is None:
            self.unable.append(last)
        what = f"; trial {trial} is begun again" if trial is not None else ""
        how = signal.Signals(-code).name if -code in signal.valid_signals() else f"exit code {code}"
        words = f": {last}" if code > 0 and last else ""
        say(f"worker {hand.spec.index} died ({how}){words}{what}")
        hand.begin_at = time.monotonic() + min(30.0, 0.1 * 2 ** max(0, self.deaths - len(self.hands)))

    def last_words(self, hand: Hand) -> str:
        """The last line of a worker's log."""
        lines = self._log(hand).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " ".join(lines[-1].split())[:300] if lines else ""

    def alive(self) -> bool:
        """Whether any worker is at work, or about to be."""
        return any(hand.process is not None or hand.begin_at for hand in self.hands)

    def stop(self) -> None:
        """End all workers, those that run a trial after they have put it back; nothing of them is left behind."""
        at_work = [hand.process for hand in self.hands if hand.process is not None]
        for process in at_work:
            process.terminate()
        until = time.monotonic() + LEAVE_SECONDS
        for process in at_work:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._selector.close()
        for hand in self.hands:
            hand.process, hand.begin_at = None, 0.0
            log = self._log(hand)
            if log.exists() and not log.stat().st_size:
                log.unlink()
