"""Runs a study: checks it, hands its jobs to workers, and writes results as they arise.

The parent alone talks to the tracking store and writes the table and the report; workers write the cells' files. So a
kill at any moment leaves finished files behind, and the same command continues from them.
"""

from __future__ import annotations

import sys
import time

from harness.errors import UserError
from harness.provenance import cpu_count
from harness.store import StudyLock, read_json, write_json, write_text
from harness.study.cells import DATA_ROW, Cell, data_cell, left_out, make_cells
from harness.study.outcome import Outcome
from harness.study.pool import Message, Pool
from harness.study.progress import Display, clock
from harness.study.publish import Publisher
from harness.study.schedule import JUDGE, NEEDS_FAILED, JobKey, Task, make_tasks, ready, spread_failure, unfinished
from harness.study.session import Session
from harness.study.work import samples_file
from harness.training.distributed import gpu_groups

MAX_TRIES = 2


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
    with StudyLock(session.folder), Publisher(session, cells, data, command) as publisher:
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


def _mark_failed_before(tasks: dict[JobKey, Task], cells: list[Cell]) -> None:
    """A cell that diverged would do so again, with the same seeds; it is reported again instead of trained again."""
    for cell in cells:
        if cell.failure.exists():
            task = tasks[("train", cell.name)]
            task.state, task.text = "failed", read_json(cell.failure)["reason"]
    spread_failure(tasks)


def _work(
    session: Session, tasks: dict[JobKey, Task], cells: list[Cell], data: Cell, publisher: Publisher
) -> dict[str, str]:
    by_name = {cell.name: cell for cell in (*cells, data)}
    _skip_finished(session, tasks, by_name, publisher)
    if unfinished(tasks):
        count = min(worker_count(session), len([t for t in tasks.values() if t.state == "waiting"]))
        gpus = gpu_groups(session.cfg.compute.processes) if session.numerics.device == "cuda" else None
        display = Display(tasks, count)
        pool = Pool(session.tree, count, gpus, session.weights)
        try:
            _loop(tasks, pool, display, publisher, by_name)
        finally:
            pool.stop()
    return {t.key[1]: t.text for t in tasks.values() if t.state == "failed" and t.text != NEEDS_FAILED}


def _skip_finished(session: Session, tasks: dict[JobKey, Task], by_name: dict[str, Cell], publisher: Publisher) -> None:
    """Mark what is in files already; the judge is asked for only while something is left to be scored."""
    protocol = publisher.protocol()
    for (kind, name), task in tasks.items():
        cell = by_name.get(name)
        if task.state == "failed" or cell is None:
            continue
        files = {
            "train": [cell.facts(session), *([cell.model] if cell.trained else [])],
            "sample": [file for p in cell.parts for file in (cell.samples(session, p), samples_file(session, cell, p))],
            "score": [cell.scores(session, p, protocol) for p in cell.parts] if protocol else [],
        }[kind]
        if files and cell.method == DATA_ROW:  # nothing is sampled: what is scored is written as text by the same job
            files += [samples_file(session, cell, p) for p in cell.parts]
        if files and all(f.exists() for f in files):
            task.state = "done"
    if protocol and all(t.state in ("done", "failed") for k, t in tasks.items() if k != JUDGE):
        tasks[JUDGE].state = "done"


def _loop(
    tasks: dict[JobKey, Task], pool: Pool, display: Display, publisher: Publisher, by_name: dict[str, Cell]
) -> None:
    refused: list[str] = []

    def handle(key: JobKey, message: Message) -> None:
        task = tasks[key]
        if message.kind == "progress":
            task.text, task.extra = message.text, {"done": message.done, "total": message.total}
            if message.total and key[0] == "train":
                task.fraction = message.done / message.total
            return
        if message.kind == "done":
            task.state = "done"
            publisher.job_done(key, by_name.get(key[1]))
        elif message.kind == "refused":
            task.state = "failed"
            refused.append(message.text)
        elif message.kind == "died" and task.tries < MAX_TRIES:
            task.state = "waiting"
            display.say(f"{key[0]} {key[1]}: {message.text}; trying again")
        else:
            task.state, task.text = "failed", message.text.strip().splitlines()[-1]
            display.say(f"{key[0]} {key[1]} failed: {message.text.strip()}")
            if message.kind == "failed":
                write_json(by_name[key[1]].failure, {"reason": message.text})
            elif message.kind == "broke":
                write_text(
                    publisher.session.folder / "errors" / f"{key[0]}-{key[1].replace('/', '-')}.txt", message.text
                )
        spread_failure(tasks)

    while unfinished(tasks) and not refused:
        for worker, task in zip(pool.idle(), ready(tasks), strict=False):
            task.state, task.text, task.extra = "running", "", {}
            task.tries += 1
            pool.assign(worker, task.key)
        pool.poll(1.0, handle)
        publisher.tick()
        display.update()
    display.update(force=True)
    if refused:
        raise UserError(refused[0])
