"""The tasks of a study (judge, train, sample, score), and what its worker processes do for each.

A job is (kind, name): training is named after the weights, the rest after cells. Results are files. Weights of tasks are
rough numbers of full network calls for one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.jobs.locks import waiting_for
from harness.jobs.pool import Serve, Talk
from harness.jobs.schedule import Task, TaskKey, spread_failure
from harness.store import read_json
from harness.study import steps
from harness.study.cells import Cell, Weights, data_cell, make_cells
from harness.study.folder import known_protocol
from harness.study.made import changed
from harness.study.session import Session

JUDGE: TaskKey = ("judge", "judge")
#: A training step costs three forward passes of a batch, and runs in eager mode where sampling may be compiled.
_TRAIN, _SAMPLE, _SCORE, _LATENT_EXTRA = 4.5, 1.0, 2.0, 1.5
#: What a judge trains on, a token of text that is counted, and one that is drawn with what was before it kept at hand.
_JUDGE, _COUNT, _NEXT = 3.5, 0.01, 4.0
#: Seconds of a task whatever its weight: FLOPs are counted, files are read and written. Of compiling a network for the first
#: time here, and of reading what was compiled.
_FIXED, _COMPILE, _COMPILED = {"judge": 1.0, "train": 2.0, "sample": 0.3, "score": 0.3}, 25.0, 3.0


def make_tasks(session: Session, cells: list[Cell], data: Cell) -> dict[TaskKey, Task]:
    """All tasks by key."""
    s, c = session.cfg.study, session.cfg.scale
    tasks = [Task(JUDGE, (), _JUDGE * session.judge.left_to_train(session.data, session.cache))]
    tokens, counting = s.samples * c.length, _COUNT * session.data.splits["train"].size
    for weights, own in by_weights(cells).items():
        more = _LATENT_EXTRA if own[0].role == "method" else 1.0
        cost = more * _TRAIN * c.steps * c.batch * c.length if weights.trained else counting
        tasks.append(Task(("train", weights.name), (), cost, measured=True))
    for cell in cells:
        sample: TaskKey = ("sample", cell.name)
        # A call for each token: it draws that one alone. What is counted is counted again.
        calls = sum(_SAMPLE * p.nfe if p.nfe < c.length else _NEXT for p in cell.parts)
        cost = tokens * calls if cell.weights.trained else counting
        tasks.append(Task(sample, (("train", cell.weights.name),), cost))
        tasks.append(Task(("score", cell.name), (sample, JUDGE), _SCORE * tokens * len(cell.parts)))
    tasks.append(Task(("score", data.name), (JUDGE,), _SCORE * s.samples * c.length))
    compiling = _COMPILED if any(session.cache.glob("compiled-*")) else _COMPILE
    compiled = {"train": session.numerics.compile_training, "sample": session.numerics.compile_sampling}
    names = {name for c in cells if c.weights.trained for name in (c.name, c.weights.name)}
    for (kind, name), task in ((t.key, t) for t in tasks):
        task.fixed = _FIXED[kind] + (compiling if name in names and compiled.get(kind) else 0.0)
    return {t.key: t for t in tasks}


def mark(session: Session, tasks: dict[TaskKey, Task], by_name: dict[str, Cell]) -> None:
    """Mark tasks as failed whose training diverged before (it would again, with the same code and seeds), and as done what
    is in files.

    The judge is asked for only while something is left to be scored.
    """
    for (kind, name), task in tasks.items():
        if kind == "train" and (failure := by_name[name].weights.failure).exists():
            known = read_json(failure)
            if changed(session, "train", by_name[name].weights, known["made"]):
                failure.unlink()  # the code has been mended since, perhaps
            else:
                task.fail(known["reason"])
    spread_failure(tasks)
    protocol = known_protocol(session)
    for (kind, name), task in tasks.items():
        cell = by_name.get(name)
        if cell is not None and task.state != "failed" and steps.is_done(session, kind, cell, protocol):
            task.state = "done"
    if protocol and all(t.state in ("done", "failed") for k, t in tasks.items() if k != JUDGE):
        tasks[JUDGE].state = "done"


def of_model(tasks: dict[TaskKey, Task], by_name: dict[str, Cell], model: str) -> dict[TaskKey, Task]:
    """The judge's task and those of one model: its training, and the cells that draw from it; "": all that is not trained.

    The judge comes last, as several hosts want it at the same time: one trains it, and the others wait.
    """
    own = {JUDGE: tasks[JUDGE]}
    for key, task in tasks.items():
        if key != JUDGE and _model(by_name[key[1]]) == model:
            own[key] = task
    if model:
        tasks[JUDGE].weight = 0.0
    return own


def _model(cell: Cell) -> str:
    return cell.weights.name if cell.weights.trained else ""


def by_weights(cells: list[Cell]) -> dict[Weights, list[Cell]]:
    """The cells that draw from each of the study's models, in the order of the study."""
    groups: dict[Weights, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.weights, []).append(cell)
    return groups


def cells_by_task(cells: list[Cell], data: Cell) -> dict[str, Cell]:
    """The cell that a task's name stands for: its own, or for training any that draws from the weights."""
    own = {cell.name: cell for cell in (*cells, data)}
    return {weights.name: group[0] for weights, group in by_weights(cells).items()} | own


def begin(context: tuple[dict[str, Any], Path | None]) -> Serve:
    """A worker of the study with this configuration tree and folder of weights (see `Session`)."""
    tree, weights = context
    torch.set_num_threads(tree["compute"]["threads"])
    session = Session(tree, weights)
    cells = cells_by_task(make_cells(session), data_cell(session))

    def serve(job: TaskKey, talk: Talk) -> None:
        kind, name = job
        if kind == "judge":
            with waiting_for(session.folder / ".judge.lock", lambda: talk.progress("waiting for the judge", 0, 0)):
                steps.prepare_judge(session, talk.progress)
        else:
            {"train": steps.train_cell, "sample": steps.sample_cell, "score": steps.score_cell}[kind](
                session, cells[name], talk.progress
            )

    return serve
