"""The tasks of a study (judge, train, sample, score), and what its worker processes do for each.

A job is (kind, name of a cell); its results are files. Weights are rough numbers of full network calls for one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.jobs.pool import Serve, Talk
from harness.jobs.schedule import Task, TaskKey
from harness.study import steps
from harness.study.cells import Cell, data_cell, make_cells
from harness.study.session import Session

JUDGE: TaskKey = ("judge", "judge")
#: A training step costs three forward passes of a batch, and runs in eager mode where sampling may be compiled.
_TRAIN, _SAMPLE, _SCORE, _LATENT_EXTRA = 4.5, 1.0, 12.0, 1.5


def make_tasks(session: Session, cells: list[Cell], data: Cell) -> dict[TaskKey, Task]:
    """All tasks by key."""
    s, c = session.cfg.study, session.cfg.scale
    judge = Task(JUDGE, (), _TRAIN * c.steps * c.batch * c.length * 0.8)
    tasks = [judge]
    first: dict[object, TaskKey] = {}  # who trains the weights that several cells share
    for cell in cells:
        tokens = s.samples * c.length
        train: TaskKey = ("train", cell.name)
        sample: TaskKey = ("sample", cell.name)
        trained = cell.trained
        more = _LATENT_EXTRA if cell.role == "method" else 1.0
        owner = first.setdefault(cell.home, train)
        cost = more * _TRAIN * c.steps * c.batch * c.length if trained and owner == train else tokens
        tasks.append(Task(train, () if owner == train else (owner,), cost, measured=True))
        tasks.append(Task(sample, (train,), _SAMPLE * tokens * sum(max(p.nfe, 1) for p in cell.parts)))
        tasks.append(Task(("score", cell.name), (sample, JUDGE), _SCORE * tokens * len(cell.parts)))
    tasks.append(Task(("score", data.name), (JUDGE,), _SCORE * s.samples * c.length))
    return {t.key: t for t in tasks}


def begin(context: tuple[dict[str, Any], Path | None]) -> Serve:
    """A worker of the study with this configuration tree and folder of weights (see `Session`)."""
    tree, weights = context
    torch.set_num_threads(tree["compute"]["threads"])
    session = Session(tree, weights)
    cells = {cell.name: cell for cell in (*make_cells(session), data_cell(session))}

    def serve(job: TaskKey, talk: Talk) -> None:
        kind, name = job
        if kind == "judge":
            steps.prepare_judge(session, talk.progress)
        else:
            {"train": steps.train_cell, "sample": steps.sample_cell, "score": steps.score_cell}[kind](
                session, cells[name], talk.progress
            )

    return serve
