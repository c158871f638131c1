"""Worker processes that run jobs one at a time and report progress; they die with their parent and are replaced.

What a job is and what is done with it is the caller's: a worker is given `begin`, a function of a module, and what that
needs (`context`), and calls what `begin(context)` returns for each job. Results are files, or small values in a message.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.errors import JobError, UserError
from harness.jobs.memory import oom_kills, why_killed
from harness.jobs.schedule import Task
from harness.jobs.signals import unheard

#: What other packages print in workers, in a folder `errors`.
WORKERS_LOG = "workers.log"


@dataclass(frozen=True)
class Message:
    """What a worker says of its job.

    `kind` is "progress", "ask" (it waits for an answer to `value`), "done" (with `value`), "failed" (a `JobError`: it would
    fail again), "refused" (bad input), "broke" (anything else, `text` is the traceback) or "died" (the process ended).
    """

    kind: str
    text: str = ""
    done: int = 0
    total: int = 0
    value: Any = None


class Talk:
    """The worker's side: says how far its job is, and asks the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._said = pipe, 0.0

    def progress(self, text: str, done: int, total: int) -> None:
        """Say how far the job is; no more than twice a second, but always that it is through."""
        if time.monotonic() - self._said > 0.5 or done == total:
            self._said = time.monotonic()
            self._pipe.send(Message("progress", text, done, total))

    def ask(self, question: Any) -> Any:
        """What the parent answers."""
        self._pipe.send(Message("ask", value=question))
        return self._pipe.recv()


#: Runs one job; what it returns goes to the parent with "done".
Serve = Callable[[Any, Talk], Any]
#: Makes a worker's `Serve` from the pool's context, in the worker; a function at the top of a module.
Begin = Callable[[Any], Serve]


def die_with_parent(parent: int) -> None:
    """End this process at once when process `parent`, which started it, is gone.

    A worker whose parent was killed would otherwise write beside the run that takes over.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _next(pipe: Connection) -> Any:
    """The next job; None where the parent is done, or gone."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _quieten(log: Path) -> None:
    """What other packages say goes to `log`, not to the terminal: Python's warnings, and what compiled code prints.

    `sys.stderr` stays the terminal, for lines of our own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr = open(os.dup(2), "w", buffering=1, errors=sys.stderr.errors)  # noqa: SIM115 - for as long as it lives
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        os.write(2, warnings.formatwarning(message, category, filename, lineno).encode())

    warnings.showwarning = show


def _live(pipe: Connection, log: Path, parent: int, environment: dict[str, str]) -> None:
    """A worker's life: jobs until told to stop. What makes it a worker of something comes first, for that is imported here."""
    die_with_parent(parent)
    os.environ.update(environment)
    _quieten(log)
    # On Python 3.11 torch's compiler stops if distutils was imported before setuptools, as some libraries do.
    with contextlib.suppress(ImportError):
        import setuptools  # noqa: F401
    life, serve = _next(pipe), None
    while life and (job := _next(pipe)) is not None:
        try:
            serve = serve or life[0](life[1])
            said = Message("done", value=serve(job, Talk(pipe)))
        except JobError as error:
            said = Message("failed", str(error))
        except UserError as error:
            said = Message("refused", str(error))
        except Exception:
            said = Message("broke", traceback.format_exc())
        try:
            pipe.send(said)
        except OSError:  # the command was killed while the job ended: nobody is there to be told
            return


@dataclass
class Worker:
    """A process, the parent's end of its pipe, and the task that it has."""

    process: Any
    pipe: Connection
    task: Task | None = None


class Pool:
    """`count` workers; `poll` passes on what they say. They take turns in having `gpus`.

    What other packages print in them is in `log`, which is removed in the end if that was nothing.
    """

    def __init__(
        self, begin: Begin, context: Any, count: int, log: Path, gpus: list[str] | None = None, threads: int = 1
    ) -> None:
        self._life, self._log, self._gpus, self._threads = (begin, context), log, gpus, threads
        self._context = multiprocessing.get_context("spawn")
        self._oom_kills = oom_kills()
        self.workers = [self._start(i) for i in range(count)]

    def _start(self, index: int) -> Worker:
        ours, theirs = self._context.Pipe()
        environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(self._threads)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[index % len(self._gpus)]
        given = (theirs, self._log, os.getpid(), environment)
        process = self._context.Process(target=_live, args=given, daemon=True)
        with unheard():
            process.start()
        theirs.close()
        with contextlib.suppress(OSError):  # it is dead already, which the next poll sees
            ours.send(self._life)
        return Worker(process, ours)

    def idle(self) -> list[Worker]:
        return [w for w in self.workers if w.task is None]

    def busy(self) -> list[Worker]:
        return [w for w in self.workers if w.task is not None]

    def assign(self, worker: Worker, task: Task) -> None:
        """Give an idle worker a task's job; one that has died is replaced first."""
        try:
            worker.pipe.send(task.job)
        except OSError:  # it died while it had nothing to do
            index = self.workers.index(worker)
            self.workers[index] = worker = self._start(index)
            worker.pipe.send(task.job)
        worker.task = task

    def poll(self, seconds: float, handle: Callable[[Task, Message], Any]) -> None:
        """Pass on the messages that arrive within `seconds`; a worker that died is replaced and its task reported.

        What `handle` returns to an "ask" is the answer.
        """
        pipes = {w.pipe: i for i, w in enumerate(self.workers) if w.task is not None}
        for pipe in wait(list(pipes), timeout=seconds):
            index = pipes[pipe]  # type: ignore[index]  # of `wait`, which also takes sockets
            worker = self.workers[index]
            task = worker.task
            assert task is not None
            try:
                message = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                code = worker.process.exitcode
                why = why_killed(self._oom_kills) if code == -signal.SIGKILL else f"; see {self._log}"
                message, self._oom_kills = (
                    Message("died", f"worker process ended with exit code {code}{why}"),
                    oom_kills(),
                )
                self.workers[index] = self._start(index)
            if message.kind not in ("progress", "ask"):
                worker.task = None
            answer = handle(task, message)
            if message.kind == "ask":
                with contextlib.suppress(OSError):  # it died meanwhile, which the next poll sees
                    worker.pipe.send(answer)

    def stop(self) -> None:
        """End all workers now; what they had finished is in files. Idle ones are asked, so that they can clean up."""
        for worker in self.idle():
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker in self.busy():
            worker.process.kill()
        for worker in self.workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        if self._log.exists() and not self._log.stat().st_size:
            self._log.unlink()
