"""Runs a study with tasks: each task is a study of its own in `<study>/<task>`, one after another; then what they share.

All tasks are checked before the first one works. The report of them all is written again after each, from the files of
those whose results are of the configuration that this command stands for, so that tasks may also be run one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.config.load import LoadedSuite
from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.progress import clock
from harness.provenance import device_name, git_state
from harness.report.html import write_html
from harness.report.suite import TaskResults, write_suite_report
from harness.store import ResultsTable
from harness.study.cells import Cell, data_cell, left_out, make_cells
from harness.study.check import check_study
from harness.study.folder import is_current
from harness.study.outcome import Outcome
from harness.study.plan import estimate
from harness.study.rows import commits_of
from harness.study.runner import run_study
from harness.study.session import Session
from harness.tracking.base import Status, Tracker
from harness.tracking.mlflow_tracker import open_tracker


class Suite:
    """The tasks of a study as sessions: `parts` are those that were chosen, `others` the rest as far as they compose."""

    def __init__(self, loaded: LoadedSuite) -> None:
        self.name, self.question, self.order = loaded.name, loaded.question, loaded.order
        self.parts = {task: Session(part.tree, server=part.cfg.tracking.uri) for task, part in loaded.parts.items()}
        self.others = {task: Session(part.tree) for task, part in loaded.others.items()}
        self.cells: dict[str, list[Cell]] = {}

    @property
    def first(self) -> Session:
        """Any of the chosen: folders and tracking are the same for all."""
        return next(iter(self.parts.values()))

    @property
    def cfg(self) -> RunConfig:
        return self.first.cfg

    @property
    def folder(self) -> Path:
        """`runs/<study>`, with a folder for each task in it."""
        return self.first.folder.parent

    def check(self) -> None:
        """Build what each chosen task stands for; raises `UserError`, which names the task, before any work."""
        for task, session in self.parts.items():
            print(f"task {task}: checking", file=sys.stderr, flush=True)
            try:
                self.cells[task] = make_cells(session)
                check_study(session, self.cells[task], data_cell(session))
            except UserError as error:
                raise UserError(f"task {task}: {error}") from error


def describe_suite(suite: Suite) -> str:
    """What each task would do, as `harness.study.plan` says it, and what they come to together."""
    suite.check()
    plans = {task: estimate(session) for task, session in suite.parts.items()}
    parts = [f"task {task}\n{text}" for task, (text, *_) in plans.items()]
    cells = [cell for task in suite.parts for cell in suite.cells[task]]
    draws = sum(len(cell.parts) for cell in cells)
    seconds, steps = sum(plan[1] for plan in plans.values()), sum(plan[2] for plan in plans.values())
    parts.append(
        f"all {len(suite.parts)} tasks: {len(cells)} cells, {sum(c.weights.trained for c in cells)} of them trained ({steps} "
        f"steps), {draws} sets of samples, about {clock(seconds)} in all. The report of them all goes to {suite.folder}"
    )
    return "\n\n".join(parts)


def run_suite(suite: Suite, command: str) -> Outcome:
    """Run what is not done yet of each chosen task; raises `UserError` before any work where one cannot be run."""
    suite.check()
    tables: list[str] = []
    failures: dict[str, str] = {}
    places: list[str] = []
    with _Log(suite) as log:
        for task, session in suite.parts.items():
            try:
                outcome = run_study(session, command)
            except UserError as error:
                raise UserError(f"task {task}: {error}") from error
            tables.append(f"{task}\n\n{outcome.table}\n")
            failures |= {f"{task}/{name}": reason for name, reason in outcome.failures.items()}
            files = _write(suite, command, failures)
            log.files(files, command)
            places = [f"report   {files[0]}", f"results  {files[1]}"] if files else []
            places += [place for place in outcome.places if place.startswith("MLflow")]
        log.finish("FAILED" if failures else "FINISHED")
    return Outcome("\n".join(tables), places, failures)


# ---- what the tasks share ---------------------------------------------------------------------------------------------
def _results(suite: Suite, task: str, failures: dict[str, str]) -> TaskResults:
    """The rows of a task, if they are of the configuration that this command stands for."""
    session = suite.parts.get(task) or suite.others.get(task)
    if session is None or not (session.folder / "state.json").exists():
        return TaskResults(task, None, 0)
    try:
        if task not in suite.cells:
            suite.cells[task] = make_cells(session)
        cells = suite.cells[task]
    except UserError:
        if task in suite.parts:
            raise
        return TaskResults(task, None, 0)  # of a task that was not chosen, and may lack its data
    current = is_current(session, cells)
    path = session.folder / "results.parquet"
    own = f"{task}/"
    return TaskResults(
        task,
        ResultsTable.read(path) if current and path.exists() else None,
        1 + sum(len(cell.parts) for cell in cells),
        [column for column in session.columns if column.headline],
        [
            *left_out(session),
            *(f"{name.removeprefix(own)} failed: {why}" for name, why in failures.items() if name.startswith(own)),
        ],
    )


def _write(suite: Suite, command: str, failures: dict[str, str]) -> list[Path]:
    """Write the report of all tasks; returns the report, the rows and the figures, or nothing where there is no row."""
    tasks = [_results(suite, task, failures) for task in suite.order]
    if all(task.frame is None or task.frame.empty for task in tasks):
        return []
    studies = [session.cfg.study for session in suite.parts.values()]
    numerics = suite.first.numerics
    context = {
        "title": f"Study {suite.name}",
        "question": suite.question,
        "n": " or ".join(dict.fromkeys(str(s.samples) for s in studies)),
        "seeds": " or ".join(dict.fromkeys(", ".join(map(str, s.seeds)) for s in studies)),
        "device": f"{device_name(numerics.device)}, {numerics.precision}",
        "command": command,
        "git_sha": ", ".join(dict.fromkeys(commits_of(task.frame) for task in tasks if task.frame is not None)),
    }
    report = write_suite_report(suite.folder, tasks, context)
    return [
        write_html(report),
        suite.folder / "results.parquet",
        report,
        *sorted((suite.folder / "figures").glob("*.png")),
    ]


class _Log:
    """The suite's own run in tracking: opened with the first files, finished or marked as killed at the end."""

    def __init__(self, suite: Suite) -> None:
        self.suite, self.run = suite, ""
        self.tracker: Tracker = Tracker()

    def __enter__(self) -> _Log:
        return self

    def _open(self, command: str) -> None:
        s = self.suite
        tracker = open_tracker(s.cfg.tracking, s.cfg.runs_dir, system_metrics=False)
        params = {f"task.{task}": str(session.folder) for task, session in s.parts.items()}
        tags = {"study": s.name, "git_sha": git_state().sha, "command": command}
        self.run = tracker.open_study(s.name, params, tags)
        self.tracker = tracker

    def files(self, paths: list[Path], command: str) -> None:
        """Log figures and files; a store that has gone away costs a line, not the study."""
        if self.suite.cfg.tracking.enabled and not self.run:
            try:
                self._open(command)
            except UserError as error:
                print(f"the report of all tasks is not logged: {error}", file=sys.stderr)
        if self.run:
            for path in paths:
                self.tracker.log_file(self.run, path, "figures" if path.suffix == ".png" else None)

    def finish(self, status: Status) -> None:
        """Close the run, if there is one."""
        if self.run:
            self.tracker.finish(self.run, status)
            self.run = ""

    def __exit__(self, kind: object, *rest: object) -> None:
        self.finish("KILLED")
        self.tracker.close()
