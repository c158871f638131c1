"""Submits a plan, waits for it where that is wanted, and says what came of it."""

from __future__ import annotations

from pathlib import Path

from harness.slurm.plan import Plan, plan_search, plan_study
from harness.slurm.queue import Submitted, need_slurm, open_executor, say, submit, wait_for
from harness.study.outcome import Outcome


def submit_study(arguments: list[str], folders: list[Path], command: str) -> Outcome:
    """Run a study as jobs, the last of which publishes when the others have ended, on the same kind of node.

    Raises `UserError` before any is submitted.
    """
    need_slurm()  # before data are read
    plan = plan_study(arguments, folders, command)
    assert plan.last is not None, "of a study"
    executor = open_executor(plan)
    submitted = submit(executor, plan.jobs, plan.folder)
    numbers = sorted({handle.job_id.split("_")[0] for _, handle in submitted})
    executor.update_parameters(dependency="afterany:" + ":".join(numbers))
    [last] = submit(executor, [plan.last], plan.folder, anew=True)
    _say_submitted(plan, [*submitted, last])
    if not plan.wait:
        text = f"jobs {', '.join(numbers)}; {last[1].job_id} publishes when they have ended"
        return Outcome("", [text, _logs(plan)])
    ended = wait_for([*submitted, last])
    published = ended.pop(plan.last.name)
    # A job's own reason says more than that its files are missing.
    failures = published.failures | _failures(ended)
    return Outcome(published.table, [*published.places, _logs(plan)], failures)


def submit_search(arguments: list[str], folders: list[Path]) -> Outcome:
    """Run `slurm.jobs` commands of `harness.tune` that join one study; raises `UserError` before any is submitted."""
    need_slurm()
    plan = plan_search(arguments, folders)
    submitted = submit(open_executor(plan), plan.jobs, plan.folder)
    _say_submitted(plan, submitted)
    if not plan.wait:
        return Outcome("", [_logs(plan)])
    failures = _failures(wait_for(submitted))
    places = [plan.folder.parent / name for name in ("report.md", "best.yaml")]
    return Outcome("", [*(str(place) for place in places if place.exists()), _logs(plan)], failures)


def _say_submitted(plan: Plan, submitted: list[Submitted]) -> None:
    for job, handle in submitted:
        say(f"{job.name}: job {handle.job_id}")
    say(f"{len(submitted)} jobs of {plan.name}; stopping this command does not stop them (scancel does)")


def _failures(ended: dict[str, Outcome]) -> dict[str, str]:
    return {name: reason for outcome in ended.values() for name, reason in outcome.failures.items()}


def _logs(plan: Plan) -> str:
    return f"logs     {plan.folder}"
