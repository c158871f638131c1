"""SLURM's queue through submitit: jobs are submitted, waited for, and asked what came of them.

submitit writes each job as a script and a pickle into a folder of the user's, runs `python -m submitit.core._submit` there,
and on the signal that comes before a timeout or a preemption calls the job's `checkpoint` and puts it back into the queue.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError

from harness.errors import UserError
from harness.jobs.launch import python_path
from harness.slurm.jobs import Job
from harness.slurm.plan import Plan
from harness.store import read_json, write_json
from harness.study.outcome import Outcome

#: A job and submitit's handle of it.
Submitted = tuple[Job, Any]


def need_slurm() -> None:
    """Raise `UserError` on a machine without SLURM's programs."""
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"there is no {program} here; use a login node of the cluster, or harness.run without one")


def open_executor(plan: Plan) -> SlurmExecutor:
    """submitit's executor whose jobs ask for what the plan says, with their files in its folder; raises `UserError`."""
    os.environ["PYTHONPATH"] = python_path()
    executor = SlurmExecutor(plan.folder, max_num_timeout=plan.slurm.max_timeouts)
    executor.update_parameters(**_sbatch(plan))
    return executor


def _sbatch(plan: Plan) -> dict[str, Any]:
    s = plan.slurm
    words = {key: getattr(s, key) for key in ("partition", "account", "qos", "constraint", "nodelist", "exclude")}
    given: dict[str, Any] = {key: value for key, value in words.items() if value}
    given |= {"gpus_per_node": plan.gpus} if plan.gpus else {}
    given |= {"mem": f"{math.ceil(s.mem_gb * 1024)}MB"} if s.mem_gb else {}
    given |= {"setup": list(s.setup)} if s.setup else {}
    given |= {"array_parallelism": s.at_a_time} if s.at_a_time else {}
    return given | {
        "job_name": plan.name,
        "time": math.ceil(s.timeout_min),
        "signal_delay_s": s.signal_delay_s,
        "cpus_per_task": plan.cpus,
        "ntasks_per_node": 1,
        # Without it a cluster may be set up never to start a job again that it has preempted.
        "additional_parameters": {"requeue": True} | dict(s.more),
    }


def submit(executor: SlurmExecutor, jobs: Sequence[Job], folder: Path, anew: bool = False) -> list[Submitted]:
    """Submit the jobs as one array; a job of the same name that an earlier command left in the queue is kept instead.

    With `anew` it is cancelled instead, and submitted again.
    """
    path = folder / "jobs.json"
    known = read_json(path) if path.exists() else {}
    kept = {job.name: old for job in jobs if (old := _still_there(known.get(job.name))) is not None}
    if anew:
        for old in kept.values():
            old.cancel(check=False)
        kept = {}
    fresh = [job for job in jobs if job.name not in kept]
    made = executor.submit_array(fresh) if len(fresh) > 1 else [executor.submit(job) for job in fresh]
    handles = kept | {job.name: handle for job, handle in zip(fresh, made, strict=True)}
    write_json(path, known | {name: [str(handle.paths.folder), handle.job_id] for name, handle in handles.items()})
    return [(job, handles[job.name]) for job in jobs]


def _still_there(known: list[str] | None) -> SlurmJob[Any] | None:
    if known is None:
        return None
    handle: SlurmJob[Any] = SlurmJob(folder=known[0], job_id=known[1])
    # The accounting forgets, and may not be there: what it does not know is submitted again, and finds its files.
    there = not handle.done(force_check=True) and handle.state not in ("UNKNOWN", "")
    return handle if there else None


def wait_for(submitted: Sequence[Submitted], seconds: float = 10.0) -> dict[str, Outcome]:
    """How all jobs ended, by name, each said in a line as it comes."""
    waiting, ended = list(submitted), {}
    while waiting:
        for job, handle in [pair for pair in waiting if pair[1].done()]:
            waiting.remove((job, handle))
            ended[job.name] = outcome = _outcome(job, handle)
            say(f"{job.name}: {'; '.join(outcome.failures.values()) or 'done'} ({len(ended)} of {len(submitted)} jobs)")
        if waiting:
            time.sleep(seconds)
    return ended


def _outcome(job: Job, handle: Any) -> Outcome:
    """How a job ended; where it could not say so itself, the reason is the end of its log."""
    error = handle.exception()
    if error is None:
        return Outcome(**json.loads(handle.result()))
    reason = f"ended early ({handle.state}); the same command continues it"
    if isinstance(error, FailedJobError):
        lines = [line.strip() for line in str(error).partition("You can check")[0].splitlines()]
        reason = next((line for line in reversed(lines) if line.strip("- ")), reason)
    return Outcome("", [], {job.name: f"{reason}; log {handle.paths.stderr}"})


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)
