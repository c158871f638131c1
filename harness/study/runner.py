"""Runs a study: checks it, hands its jobs to workers, and writes results as they arise.

The parent alone talks to the tracking store and writes the table and the report; workers write the cells' files. So a
kill at any moment leaves finished files behind, and the same command continues from them.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from harness.errors import UserError
from harness.jobs.locks import folder_lock
from harness.jobs.loop import Work, work_off
from harness.jobs.pool import Message, Pool
from harness.jobs.progress import Display
from harness.jobs.schedule import NEEDS_FAILED, Task, TaskKey, ready, spread_failure, unfinished
from harness.progress import clock
from harness.provenance import cpu_count
from harness.store import read_json, write_json, write_text
from harness.study import steps
from harness.study.cells import Cell, data_cell, left_out, make_cells
from harness.study.outcome import Outcome
from harness.study.publish import Publisher
from harness.study.session import Session
from harness.study.tasks import JUDGE, begin, cells_by_task, make_tasks
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
    # Refuses too few held-out sequences, bad options and a folder that cannot be made, before any work.
    _ = session.reference, session.metrics, session.judge
    _make_folder(session)
    with folder_lock(session.folder), Publisher(session, cells, data, command) as publisher:
        tasks = make_tasks(session, cells, data)
        _mark_failed_before(tasks, cells)
        failures = _work(session, tasks, cells, data, publisher)
        outcome = publisher.finish(failures)
    print(f"study {session.cfg.study.name}: done in {clock(time.monotonic() - began)}", file=sys.stderr, flush=True)
    return outcome


def _make_folder(session: Session) -> None:
    try:
        session.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"runs_dir={session.cfg.runs_dir}: cannot make {session.folder} ({error.strerror}); choose another folder"
        ) from error


def _mark_failed_before(tasks: dict[TaskKey, Task], cells: list[Cell]) -> None:
    """A cell that diverged would do so again, with the same seeds; it is reported again instead of trained again."""
    for cell in cells:
        if cell.weights.failure.exists():
            tasks[("train", cell.weights.name)].fail(read_json(cell.weights.failure)["reason"])
    spread_failure(tasks)


def _work(
    session: Session, tasks: dict[TaskKey, Task], cells: list[Cell], data: Cell, publisher: Publisher
) -> dict[str, str]:
    by_name = cells_by_task(cells, data)
    _skip_finished(session, tasks, by_name, publisher)
    if unfinished(tasks):
        count = min(worker_count(session), len([t for t in tasks.values() if t.state == "waiting"]))
        compute = session.cfg.compute
        gpus = gpu_groups(compute.processes) if session.numerics.device == "cuda" else None
        pool = Pool(begin, (session.tree, session.weights), count, gpus, compute.threads)
        try:
            work_off(_StudyWork(tasks, publisher, by_name), pool, Display(tasks))
        finally:
            pool.stop()
    return {t.key[1]: t.text for t in tasks.values() if t.state == "failed" and t.text != NEEDS_FAILED}


class _StudyWork(Work):
    """The tasks of one study; finished files are published as they arise."""

    def __init__(self, tasks: dict[TaskKey, Task], publisher: Publisher, by_name: dict[str, Cell]) -> None:
        self.tasks, self.publisher, self.by_name = tasks, publisher, by_name

    def ready(self, free: int) -> list[Task]:
        return ready(self.tasks)

    def unfinished(self) -> bool:
        return unfinished(self.tasks)

    def done(self, task: Task, value: Any) -> None:
        self.publisher.job_done(task.key, self.by_name.get(task.key[1]))

    def failed(self, task: Task, message: Message) -> None:
        kind, name = task.key
        if message.kind == "failed":
            write_json(self.by_name[name].weights.failure, {"reason": message.text})
        elif message.kind == "broke":
            write_text(self.publisher.session.folder / "errors" / f"{kind}-{name.replace('/', '-')}.txt", message.text)
        spread_failure(self.tasks)

    def tick(self) -> None:
        self.publisher.tick()


def _skip_finished(
    session: Session, tasks: dict[TaskKey, Task], by_name: dict[str, Cell], publisher: Publisher
) -> None:
    """Mark what is in files already; the judge is asked for only while something is left to be scored."""
    protocol = publisher.protocol()
    for (kind, name), task in tasks.items():
        cell = by_name.get(name)
        if cell is not None and task.state != "failed" and steps.is_done(session, kind, cell, protocol):
            task.state = "done"
    if protocol and all(t.state in ("done", "failed") for k, t in tasks.items() if k != JUDGE):
        tasks[JUDGE].state = "done"
