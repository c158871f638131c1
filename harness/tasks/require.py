"""The refusal of everything that needs the data's own law where it is not known."""

from __future__ import annotations

from harness.errors import UserError
from harness.tasks.base import ExactTask


def require_task(task: ExactTask | None, who: str) -> ExactTask:
    """`task`, or a `UserError` that says what `who` (for example "method=oracle") needs."""
    if task is None:
        raise UserError(f"{who} needs data with an exact answer; choose data=binsaw, hmm, templates or permutation")
    return task
