"""What a job does on the node that it is given: tasks of a study as `harness.run` does them, or a command of `harness.tune`.

All results are files, and what is there is not done again; so a job that was stopped and is started again goes on where it
was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.helpers import DelayedSubmission

from harness import tune
from harness.config.load import Loaded, LoadedSuite, load, load_suite
from harness.errors import UserError
from harness.jobs.schedule import Task, TaskKey
from harness.study.cells import Cell, data_cell, make_cells
from harness.study.folder import claim, make_folder
from harness.study.outcome import Outcome
from harness.study.runner import StudyWork, run_study, work_on
from harness.study.session import Session
from harness.study.suite import Suite, run_suite
from harness.study.tasks import JUDGE, cells_by_task, make_tasks, mark, of_model

#: Where arguments with a login in them are handed to jobs, as a JSON list: jobs' files can be read by others.
PRIVATE_VARIABLE = "HARNESS_PRIVATE_ARGUMENTS"
#: Seconds that a search which was told to leave waits for the scheduler to stop the job.
_LEAVING = 120.0


@dataclass(frozen=True)
class Job:
    """One job: `action` is "tasks", "publish" or "tune".

    submitit hands a job to its process as a pickle, in a folder of the user's. This one holds strings and nothing else:
    what it means is looked up in the code and the configuration where it runs.
    """

    action: str
    name: str  # for people
    arguments: tuple[str, ...]
    config_dirs: tuple[str, ...] = ()
    task: str = ""  # of a study that has some
    model: str = ""  # whose tasks these are (see `harness.study.tasks.of_model`)
    command: str = ""  # what is written into the report

    def __call__(self) -> str:
        """Do it; how it ended, as the JSON of an `Outcome`. Nothing but bugs is raised."""
        try:
            outcome = _ACTIONS[self.action](self)
        except UserError as error:
            outcome = Outcome("", [], {self.name: " ".join(str(error).split())})
        return json.dumps(dataclasses.asdict(outcome))

    def checkpoint(self) -> DelayedSubmission:
        """What the scheduler is to run after preemption or a timeout: the same again, which goes on from its files."""
        return DelayedSubmission(self)

    def all_arguments(self) -> list[str]:
        """With those that are not in any file."""
        return [*self.arguments, *json.loads(os.environ.get(PRIVATE_VARIABLE, "[]"))]

    def loaded(self) -> Loaded | LoadedSuite:
        """The configuration of the study; raises `UserError`."""
        return load_any(self.all_arguments(), [Path(folder) for folder in self.config_dirs])


def load_any(arguments: list[str], folders: list[Path], sections: Sequence[str] = ()) -> Loaded | LoadedSuite:
    """A study with its tasks, or one that has none; `sections` as in `harness.config.load.load`. Raises `UserError`."""
    return load_suite(arguments, folders, sections) or load(arguments, folders, sections)


def parts_of(loaded: Loaded | LoadedSuite) -> dict[str, Loaded]:
    """The chosen tasks of a study by name; of one without tasks itself, called ""."""
    return {"": loaded} if isinstance(loaded, Loaded) else loaded.parts


def _open_tasks(session: Session) -> tuple[dict[TaskKey, Task], dict[str, Cell]]:
    cells, data = make_cells(session), data_cell(session)
    make_folder(session)
    claim(session, cells)
    return make_tasks(session, cells, data), cells_by_task(cells, data)


def _tasks(job: Job) -> Outcome:
    """The tasks of one model, or all that is not trained, with the judge's."""
    session = Session(parts_of(job.loaded())[job.task].tree)
    tasks, by_name = _open_tasks(session)
    tasks = of_model(tasks, by_name, job.model)
    mark(session, tasks, by_name)
    return Outcome("", [], work_on(session, StudyWork(session, tasks, by_name)))


def lacking(session: Session) -> list[str]:
    """Names of the study's cells that lack a file, those that failed for good aside."""
    tasks, by_name = _open_tasks(session)
    mark(session, tasks, by_name)
    waiting = [by_name[name].name for (_, name), task in tasks.items() if task.state == "waiting" and name != JUDGE[1]]
    return list(dict.fromkeys(waiting))


def _publish(job: Job) -> Outcome:
    """What `harness.run` does when everything is there: rows, tracking, figures, the report."""
    loaded = job.loaded()
    sessions = {task: Session(part.tree, server=part.cfg.tracking.uri) for task, part in parts_of(loaded).items()}
    reason = "its job ended early; the same command submits what is missing"
    places = [f"{task}/{name}".lstrip("/") for task, session in sessions.items() for name in lacking(session)]
    if places:
        return Outcome("", [], dict.fromkeys(places, reason))
    if isinstance(loaded, LoadedSuite):
        return run_suite(Suite(loaded), job.command)
    return run_study(sessions[""], job.command)


def _tune(job: Job) -> Outcome:
    """A command of a search that joins its study."""
    folders = [word for folder in job.config_dirs for word in ("--config-dir", folder)]
    code = tune.main([*job.all_arguments(), *folders])
    if code > 128:  # it was told to leave: what stops the job comes after that
        time.sleep(_LEAVING)
    return Outcome("", [], {job.name: f"harness.tune ended with exit code {code}"} if code else {})


_ACTIONS = {"tasks": _tasks, "publish": _publish, "tune": _tune}
