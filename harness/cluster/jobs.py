"""What a job does on the machine that it is given. It calls the same functions as a worker of `harness.run`, which return at
once where their files are there; so a job that was stopped and is started again goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.progress import counted

if TYPE_CHECKING:
    from harness.study.cells import Cell
    from harness.study.session import Session

#: Where arguments with a login in them are handed to jobs, as a JSON list: jobs' files can be read by others.
PRIVATE_VARIABLE = "HARNESS_PRIVATE_ARGUMENTS"
#: Seconds that a tuning which was told to leave waits for the scheduler to stop the job.
_LEAVING = 120.0


@dataclass(frozen=True)
class Job:
    """One job: `action` is "judge", "cells", "publish" or "tune".

    submitit hands a job to its process as a pickle, in a folder of the user's. This one holds strings and nothing else:
    what it means is looked up in the code and the configuration where it runs.
    """

    action: str
    name: str  # for people
    arguments: tuple[str, ...]
    config_dirs: tuple[str, ...] = ()
    task: str = ""
    cells: tuple[str, ...] = ()
    command: str = ""  # what is written into the report

    def __call__(self) -> str:
        """Do it; JSON with "failures" (name to reason), and what `publish` prints. Nothing but bugs is raised."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        try:
            answer = _ACTIONS[self.action](self)
        except UserError as error:
            answer = {"failures": {self.name: " ".join(str(error).split())}}
        return json.dumps(answer)

    def checkpoint(self) -> Any:
        """What the scheduler is to run after preemption or a timeout: the same again, which goes on from its files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def all_arguments(self) -> list[str]:
        """With those that are not in any file."""
        return [*self.arguments, *json.loads(os.environ.get(PRIVATE_VARIABLE, "[]"))]

    def sessions(self) -> dict[str, Session]:
        """The study, or its tasks by name."""
        from harness.config.load import load, load_suite
        from harness.study.session import Session

        folders = [Path(folder) for folder in self.config_dirs]
        suite = load_suite(self.all_arguments(), folders)
        if suite is None:
            return {"": Session(load(self.all_arguments(), folders).tree)}
        return {task: Session(part.tree) for task, part in suite.parts.items()}


class _Log:
    """Progress in a job's log: a line when what is done changes, and otherwise every half minute."""

    def __init__(self, name: str) -> None:
        self._name, self._text, self._said = name, "", 0.0

    def __call__(self, text: str, done: int, total: int) -> None:
        if text != self._text or done == total or time.monotonic() - self._said > 30:
            self._text, self._said = text, time.monotonic()
            print(f"{self._name}: {counted(text, done, total)}", file=sys.stderr, flush=True)


def _open(job: Job) -> tuple[Session, dict[str, Cell]]:
    import torch

    from harness.study.cells import data_cell, make_cells

    session = job.sessions()[job.task]
    torch.set_num_threads(session.cfg.compute.threads)
    return session, {cell.name: cell for cell in (*make_cells(session), data_cell(session))}


def _judge(job: Job) -> dict[str, Any]:
    """The judge, the held-out row that needs nothing else, and the cells of `job`."""
    from harness.study.cells import DATA_ROW

    session, cells = _open(job)
    _score(session, next(cell for cell in cells.values() if cell.method == DATA_ROW), _Log("judge"))
    return _do_cells(job, session, cells)


def _cells(job: Job) -> dict[str, Any]:
    return _do_cells(job, *_open(job))


def _do_cells(job: Job, session: Session, cells: dict[str, Cell]) -> dict[str, Any]:
    """Train, sample and score cells; one whose loss is not a number is marked as failed, for the report to say so."""
    from harness.store import write_json, write_text
    from harness.study import steps
    from harness.training.loop import Diverged

    failures: dict[str, str] = {}
    for name in job.cells:
        cell, progress = cells[name], _Log(name)
        try:
            if not cell.failure.exists():
                steps.train_cell(session, cell, progress)
                steps.sample_cell(session, cell, progress)
                _score(session, cell, progress)
        except Diverged as error:
            write_json(cell.failure, {"reason": str(error)})
        except UserError:
            raise
        except Exception as error:
            write_text(session.folder / "errors" / f"job-{name.replace('/', '-')}.txt", traceback.format_exc())
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            failures[name] = f"{type(error).__name__}: {reason}"
    return {"failures": failures}


def _score(session: Session, cell: Cell, progress: _Log) -> None:
    """Score with a judge that is trained by whichever job comes first; the others wait for it."""
    from harness.jobs.locks import waiting_for
    from harness.study import steps

    if not hasattr(session, "_protocol"):
        with waiting_for(session.folder / "judge.lock", lambda: progress("waiting for the judge", 0, 0)):
            session._protocol = steps.prepare_judge(session, progress)
    steps.score_cell(session, cell, progress)


def unfinished(session: Session) -> list[str]:
    """Names of the study's cells that lack a file, those that failed for good aside."""
    from harness.store import read_json
    from harness.study.cells import data_cell, make_cells

    path = session.folder / "protocol.json"
    cells = [cell for cell in make_cells(session) if not cell.failure.exists()]
    if not path.exists():
        return [cell.name for cell in (*cells, data_cell(session))]
    protocol = read_json(path)["id"]
    lacking = []
    for cell in (*cells, data_cell(session)):
        files = [cell.scores(session, part, protocol) for part in cell.parts]
        if cell in cells:
            files += [cell.facts(session), *(cell.samples(session, part) for part in cell.parts)]
        files += [cell.model] if cell.trained else []
        lacking += [] if all(file.exists() for file in files) else [cell.name]
    return lacking


def _publish(job: Job) -> dict[str, Any]:
    """What `harness.run` does when everything is there: rows, tracking, figures, the report."""
    lacking = {task: names for task, session in job.sessions().items() if (names := unfinished(session))}
    if lacking:
        reason = "its job ended early; the same command submits what is missing"
        where = [f"{task}/{name}".lstrip("/") for task, names in lacking.items() for name in names]
        return {"failures": dict.fromkeys(where, reason)}
    return publish(job)


def publish(job: Job) -> dict[str, Any]:
    """The ordinary runner: it does what is missing, if anything is, and reports. Text, places and failures."""
    from harness.config.load import load_suite
    from harness.study.runner import run_study
    from harness.study.suite import Suite, run_suite

    suite = load_suite(job.all_arguments(), [Path(folder) for folder in job.config_dirs])
    outcome = run_study(job.sessions()[""], job.command) if suite is None else run_suite(Suite(suite), job.command)
    return {"text": outcome.table, "places": outcome.places, "failures": outcome.failures}


def _tune(job: Job) -> dict[str, Any]:
    """A worker of a tuning, or several, that join its study."""
    from harness import tune

    folders = [word for folder in job.config_dirs for word in ("--config-dir", folder)]
    code = tune.main([*job.all_arguments(), *folders])
    if code == 130:  # it was told to leave: what stops the job comes after that
        time.sleep(_LEAVING)
    return {"failures": {job.name: f"harness.tune ended with exit code {code}"} if code else {}}


_ACTIONS = {"judge": _judge, "cells": _cells, "publish": _publish, "tune": _tune}
