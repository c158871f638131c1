"""Runs a study: checks it, hands its jobs to workers, and writes results as they arise.

The parent alone talks to the tracking store and writes the table and the report; workers write the cells' files. So a
kill at any moment leaves finished files behind, and the same command continues from them.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from harness.jobs.locks import folder_lock
from harness.jobs.loop import Work, work_off
from harness.jobs.pool import WORKERS_LOG, Message, Pool
from harness.jobs.progress import Display
from harness.jobs.schedule import NEEDS_FAILED, Task, TaskKey, ready, spread_failure, unfinished
from harness.progress import clock
from harness.provenance import cpu_count
from harness.store import write_json, write_text
from harness.study.cells import Cell, data_cell, left_out, make_cells
from harness.study.check import check_study
from harness.study.folder import make_folder, sweep_parts
from harness.study.made import made_by
from harness.study.memory import check_memory
from harness.study.outcome import Outcome
from harness.study.pace import price
from harness.study.publish import Publisher
from harness.study.session import Session
from harness.study.standing import settle
from harness.study.tasks import begin, cells_by_task, make_tasks, mark
from harness.training.distributed import gpu_groups


def worker_count(session: Session) -> int:
    """Cells at a time: as told, or one for each GPU, or one for each core (at most 8), with all that a cell trains on."""
    if session.cfg.compute.workers:
        return session.cfg.compute.workers
    compute = session.cfg.compute
    if session.numerics.device.startswith("cuda"):
        return max(1, len(gpu_groups(compute.processes))) if session.numerics.device == "cuda" else 1
    return max(1, min(8, cpu_count() // (compute.threads * compute.processes)))


def run_study(session: Session, command: str) -> Outcome:
    """Run what is not done yet; raises `UserError` before any work where the study cannot be run."""
    print(f"study {session.cfg.study.name}: reading data", file=sys.stderr, flush=True)
    began = time.monotonic()
    cells, data = make_cells(session), data_cell(session)
    for line in left_out(session):
        print(line, file=sys.stderr, flush=True)
    standing = check_study(session, cells, data)
    check_memory(session, cells)
    make_folder(session)
    sweep_parts(session.folder, session.cache)
    with folder_lock(session.folder):
        settle(session, standing)
        with Publisher(session, cells, data, command) as publisher:
            tasks, by_name = make_tasks(session, cells, data), cells_by_task(cells, data)
            mark(session, tasks, by_name)
            failures = work_on(session, _PublishedWork(publisher, tasks, by_name))
            outcome = publisher.finish(failures)
    print(f"study {session.cfg.study.name}: done in {clock(time.monotonic() - began)}", file=sys.stderr, flush=True)
    return outcome


def work_on(session: Session, work: StudyWork) -> dict[str, str]:
    """Do the tasks that are open, in worker processes; reasons of those that failed by their own fault, by name."""
    if unfinished(work.tasks):
        count = min(worker_count(session), len([t for t in work.tasks.values() if t.state == "waiting"]))
        compute = session.cfg.compute
        gpus = gpu_groups(compute.processes) if session.numerics.device == "cuda" else None
        expected = price(session, work.tasks, count)
        log = session.folder / "errors" / WORKERS_LOG
        pool = Pool(begin, (session.tree, session.weights), count, log, gpus, compute.threads)
        try:
            work_off(work, pool, Display(work.tasks, expected=expected))
        finally:
            pool.stop()
    return {t.key[1]: t.text for t in work.tasks.values() if t.state == "failed" and t.text != NEEDS_FAILED}


class StudyWork(Work):
    """Tasks of one study; their results are files."""

    def __init__(self, session: Session, tasks: dict[TaskKey, Task], by_name: dict[str, Cell]) -> None:
        self.session, self.tasks, self.by_name = session, tasks, by_name

    def ready(self, free: int) -> list[Task]:
        return ready(self.tasks, worker_count(self.session))

    def unfinished(self) -> bool:
        return unfinished(self.tasks)

    def done(self, task: Task, value: Any) -> None:
        """There is nothing to do: the files are there."""

    def failed(self, task: Task, message: Message) -> None:
        kind, name = task.key
        if message.kind == "failed":
            weights = self.by_name[name].weights
            write_json(weights.failure, {"reason": message.text, "made": made_by(self.session, "train", weights)})
        elif message.kind == "broke":
            write_text(self.session.folder / "errors" / f"{kind}-{name.replace('/', '-')}.txt", message.text)
        spread_failure(self.tasks)


class _PublishedWork(StudyWork):
    """Finished files are published as they arise."""

    def __init__(self, publisher: Publisher, tasks: dict[TaskKey, Task], by_name: dict[str, Cell]) -> None:
        super().__init__(publisher.session, tasks, by_name)
        self.publisher = publisher

    def done(self, task: Task, value: Any) -> None:
        self.publisher.job_done(task.key, self.by_name.get(task.key[1]))

    def tick(self) -> None:
        self.publisher.tick()
