"""What a study would refuse, found out before any work: the same for a run and for its plan. Nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import UserError
from harness.study.cells import Cell
from harness.study.session import Session
from harness.study.standing import Standing, check_redo
from harness.tracking.mlflow_tracker import open_tracker
from harness.tracking.uri import VARIABLE


def check_study(session: Session, cells: list[Cell], data: Cell) -> Standing:
    """Raise `UserError` for what does not fit together, is out of reach, or is made by other code; what stands is returned.

    Cells were made, so methods, samplers and budgets fit.
    """
    session.judge.check(session.data)
    for metric in session.metrics:
        metric.check(session.data, session.judge)
        metric.check_size(session.cfg.study.samples, session.data.length)
    _check_prompts(session, cells)
    _ = session.reference  # refuses too few held-out sequences
    for key in ("runs_dir", "cache_dir"):
        _check_place(f"{key}={getattr(session.cfg, key)}", session.folder if key == "runs_dir" else session.cache)
    if session.cfg.tracking.uri or os.environ.get(VARIABLE):
        open_tracker(session.cfg.tracking, session.cfg.runs_dir).connect()
    check_redo(session.cfg.redo, [*cells, data])
    return Standing(session, cells, data)


def _check_prompts(session: Session, cells: list[Cell]) -> None:
    """Raise `UserError` where a row cannot hold given tokens fixed, or a metric needs some that are."""
    prompt = session.cfg.study.prompt
    if prompt == "none":
        lost = [type(metric).__name__ for metric in session.metrics if metric.prompted]
        if lost:
            raise UserError(f"metric {lost[0]} scores what was filled in; use study.prompt=half or prefix")
        return
    samplers = {f"{c.method}/{c.sampler}": session.sampler(session.build(c.method), c.method, c.sampler) for c in cells}
    unfit = {name for name, s in samplers.items() if not (s.fills or (prompt == "prefix" and s.fills_prefix))}
    if unfit:
        fit = sorted(samplers.keys() - unfit)
        raise UserError(
            f"study.prompt={prompt}: {', '.join(sorted(unfit))} cannot hold given tokens fixed; "
            f"use only=[{','.join(fit) or 'mdlm'}]"
        )


def _check_place(key: str, folder: Path) -> None:
    """Raise `UserError` where the folder, or the nearest one above it that exists, is no folder that can be written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is not writable" if there.is_dir() else "is a file"
        raise UserError(f"{key}: cannot make {folder} ({there} {reason}); choose another folder")
