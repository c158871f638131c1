"""Worker processes that run jobs one at a time and report progress; they die with their parent and are replaced.

A job is (kind, cell name); what it does is in `harness.study.work`. Results are files, so nothing but messages travels.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.lifetime import die_with_parent as _die_with_parent


@dataclass(frozen=True)
class Message:
    """What a worker says: kind is "progress", "done", "failed" (the cell's own fault), "refused" (bad input), "broke"."""

    kind: str
    text: str = ""
    done: int = 0
    total: int = 0


@dataclass
class Worker:
    """A process, the parent's end of its pipe, and the job that it has."""

    process: Any
    pipe: Connection
    job: tuple[str, str] | None = None


def _next(pipe: Connection) -> tuple[str, str] | None:
    """The next job; None where the parent is done, or gone."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _serve(pipe: Connection, tree: dict[str, Any], parent: int, gpu: str | None, weights: Path | None = None) -> None:
    """A worker's life: build the session, then run jobs until told to stop."""
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.setdefault("OMP_NUM_THREADS", str(tree["compute"]["threads"]))
    # On Python 3.11 torch's compiler stops if distutils was imported before setuptools, as some libraries do.
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import setuptools  # noqa: F401
    import torch

    from harness.study import work
    from harness.study.cells import data_cell, make_cells
    from harness.study.session import Session
    from harness.training.loop import Diverged

    torch.set_num_threads(tree["compute"]["threads"])
    session = Session(tree, weights)
    cells = None
    said = 0.0
    while (job := _next(pipe)) is not None:
        kind, name = job

        def progress(text: str, done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said > 0.5 or done == total:
                said = time.monotonic()
                pipe.send(Message("progress", text, done, total))

        try:
            if cells is None:
                cells = {cell.name: cell for cell in (*make_cells(session), data_cell(session))}
            if kind == "judge":
                session._protocol = work.prepare_judge(session, progress)
            else:
                getattr(work, f"{kind}_cell")(session, cells[name], progress)
            pipe.send(Message("done"))
        except Diverged as error:
            pipe.send(Message("failed", str(error)))
        except UserError as error:
            pipe.send(Message("refused", str(error)))
        except Exception:
            pipe.send(Message("broke", traceback.format_exc()))


class Pool:
    """`count` workers; `step` hands out ready jobs and returns what was said."""

    def __init__(
        self, tree: dict[str, Any], count: int, gpus: list[str] | None = None, weights: Path | None = None
    ) -> None:
        """`weights` is that of the session (`harness.study.session.Session`)."""
        self.tree, self.gpus, self.weights = tree, gpus, weights
        self._context = multiprocessing.get_context("spawn")
        self.workers = [self._start(i) for i in range(count)]

    def _start(self, index: int) -> Worker:
        ours, theirs = self._context.Pipe()
        gpu = self.gpus[index % len(self.gpus)] if self.gpus else None
        life = (theirs, self.tree, os.getpid(), gpu, self.weights)
        process = self._context.Process(target=_serve, args=life, daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours)

    def idle(self) -> list[Worker]:
        return [w for w in self.workers if w.job is None]

    def busy(self) -> list[Worker]:
        return [w for w in self.workers if w.job is not None]

    def assign(self, worker: Worker, job: tuple[str, str]) -> None:
        """Give an idle worker a job; one that has died is replaced first."""
        try:
            worker.pipe.send(job)
        except OSError:  # it died while it had nothing to do
            index = self.workers.index(worker)
            self.workers[index] = worker = self._start(index)
            worker.pipe.send(job)
        worker.job = job

    def poll(self, seconds: float, handle: Callable[[tuple[str, str], Message], None]) -> None:
        """Pass on the messages that arrive within `seconds`; a worker that died is replaced and its job reported."""
        pipes = {w.pipe: i for i, w in enumerate(self.workers) if w.job is not None}
        for pipe in wait(list(pipes), timeout=seconds):
            index = pipes[pipe]
            worker = self.workers[index]
            job = worker.job
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                message = Message("died", f"worker process ended with exit code {worker.process.exitcode}")
                self.workers[index] = self._start(index)
            else:
                if message.kind != "progress":
                    worker.job = None
            handle(job, message)

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
