"""Submits a plan, waits for it where that is wanted, and says what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.cluster.executor import Ended, open_executor, run_all, say, submit_all, wait_for
from harness.cluster.jobs import publish
from harness.cluster.options import SubmitConfig
from harness.cluster.plan import Plan, plan_study, plan_tune


@dataclass
class Result:
    """What is printed in the end, and what failed, by name."""

    text: str = ""
    places: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def submit_study(cfg: SubmitConfig, arguments: list[str], folders: list[Path], command: str) -> Result:
    """Run a study's cells as jobs, then publish them as `harness.run` does; raises `UserError` before any is submitted.

    On SLURM a last job publishes when the others have ended, on the same kind of node: what files are called depends on it.
    """
    plan = plan_study(cfg, arguments, folders, command)
    executor = open_executor(cfg, plan.folder, plan.name, plan.gpus, plan.cpus)
    if cfg.cluster == "local":
        failures = _failures(run_all(executor, plan.jobs, plan.slots, plan.devices))
        return Result("", _logs(plan), failures) if failures else Result(**publish(plan.last))
    handles = submit_all(executor, plan.jobs, plan.folder)
    numbers = sorted({handle.job_id.split("_")[0] for _, handle in handles})
    executor.update_parameters(dependency="afterany:" + ":".join(numbers))
    last = submit_all(executor, [plan.last], plan.folder, anew=True)
    _submitted(plan, [*handles, *last])
    if not cfg.wait:
        return Result(
            "", [f"jobs {', '.join(numbers)}; {last[0][1].job_id} publishes when they have ended", *_logs(plan)]
        )
    ended = wait_for([*handles, *last])
    answer = next(e.answer for e in ended if e.job is plan.last)
    # A job's own reason says more than that its files are missing.
    failures = answer["failures"] | _failures([e for e in ended if e.job is not plan.last])
    return Result(answer.get("text", ""), [*answer.get("places", []), *_logs(plan)], failures)


def submit_tune(cfg: SubmitConfig, arguments: list[str], folders: list[Path]) -> Result:
    """Run `slurm.jobs` commands of `harness.tune` that join one study; raises `UserError` before any is submitted."""
    plan = plan_tune(cfg, arguments, folders)
    executor = open_executor(cfg, plan.folder, plan.name, plan.gpus, plan.cpus)
    if cfg.cluster == "local":
        ended = run_all(executor, plan.jobs, plan.slots, plan.devices)
    else:
        handles = submit_all(executor, plan.jobs, plan.folder)
        _submitted(plan, handles)
        if not cfg.wait:
            return Result("", _logs(plan))
        ended = wait_for(handles)
    places = [plan.folder.parent / name for name in ("report.md", "best.yaml")]
    return Result("", [*(str(p) for p in places if p.exists()), *_logs(plan)], _failures(ended))


def _submitted(plan: Plan, handles: list) -> None:
    for job, handle in handles:
        say(f"{job.name}: job {handle.job_id}")
    say(f"{len(handles)} jobs of {plan.name}; stopping this command does not stop them (scancel does)")


def _failures(ended: list[Ended]) -> dict[str, str]:
    return {name: reason for e in ended for name, reason in e.failures.items()}


def _logs(plan: Plan) -> list[str]:
    return [f"logs     {plan.folder}"]
