"""Jobs in the hands of submitit: submitted, waited for, and what came of them.

submitit writes each job as a script and a pickle into a folder of the user's, runs `python -m submitit.core._submit` there,
and on the signal that comes before a timeout or a preemption calls the job's `checkpoint` and puts it back into the queue.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.cluster.jobs import Job
from harness.cluster.options import SlurmConfig, SubmitConfig
from harness.errors import UserError
from harness.jobs.launch import python_path
from harness.store import read_json, write_json


@dataclass
class Ended:
    """What came of a job: its answer, or why there is none."""

    job: Job
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        return self.answer["failures"]


def submitit() -> Any:
    """The library, or one line that says how to get it."""
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise UserError(
            "harness.submit needs the library submitit; install it with: pip install 'few-step-harness[slurm]'"
        ) from None


def open_executor(cfg: SubmitConfig, folder: Path, name: str, gpus: int, cpus: int) -> Any:
    """submitit's executor whose jobs ask for this much each, with their files in `folder`; raises `UserError`."""
    library = submitit()
    os.environ["PYTHONPATH"] = python_path()
    s = cfg.slurm
    if cfg.cluster == "local":
        executor = library.LocalExecutor(folder, max_num_timeout=s.max_timeouts)
        executor.update_parameters(timeout_min=s.timeout_min, signal_delay_s=s.signal_delay_s, gpus_per_node=gpus)
        return executor
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster=slurm: there is no {program} here; use a login node of the cluster, or cluster=local"
            )
    executor = library.SlurmExecutor(folder, max_num_timeout=s.max_timeouts)
    executor.update_parameters(**_sbatch(s, name, gpus, cpus))
    return executor


def _sbatch(s: SlurmConfig, name: str, gpus: int, cpus: int) -> dict[str, Any]:
    words = {key: getattr(s, key) for key in ("partition", "account", "qos", "constraint", "nodelist", "exclude")}
    given: dict[str, Any] = {key: value for key, value in words.items() if value}
    given |= {"gpus_per_node": gpus} if gpus else {}
    given |= {"mem": f"{math.ceil(s.mem_gb * 1024)}MB"} if s.mem_gb else {}
    given |= {"setup": list(s.setup)} if s.setup else {}
    given |= {"array_parallelism": s.at_a_time} if s.at_a_time else {}
    return given | {
        "job_name": name,
        "time": math.ceil(s.timeout_min),
        "signal_delay_s": s.signal_delay_s,
        "cpus_per_task": cpus,
        "ntasks_per_node": 1,
        # Without it a cluster may be set up never to start a job again that it has preempted.
        "additional_parameters": {"requeue": True} | dict(s.more),
    }


# ---- SLURM: all at once, then wait ------------------------------------------------------------------------------------
def submit_all(executor: Any, jobs: Sequence[Job], folder: Path, anew: bool = False) -> list[tuple[Job, Any]]:
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


def _still_there(known: list[str] | None) -> Any:
    if known is None:
        return None
    handle = submitit().SlurmJob(folder=known[0], job_id=known[1])
    # The accounting forgets, and may not be there: what it does not know is submitted again, and finds its files.
    there = not handle.done(force_check=True) and handle.state not in ("UNKNOWN", "")
    return handle if there else None


def wait_for(handles: Sequence[tuple[Job, Any]], seconds: float = 10.0) -> list[Ended]:
    """All jobs' ends, each said in a line as it comes."""
    open_ones, ended = list(handles), []
    while open_ones:
        for pair in [pair for pair in open_ones if pair[1].done()]:
            open_ones.remove(pair)
            ended.append(_end(*pair))
            say(f"{pair[0].name}: {_words(ended[-1])} ({len(ended)} of {len(handles)} jobs)")
        if open_ones:
            time.sleep(seconds)
    return ended


# ---- this machine: as many at a time as fit ---------------------------------------------------------------------------
def run_all(executor: Any, jobs: Sequence[Job], slots: int, gpus: Sequence[Sequence[int]] = ()) -> list[Ended]:
    """Run the jobs, `slots` at a time (each with its own of the `gpus`); a job that ends with this process ends too."""
    waiting, running, ended = list(jobs), {}, []
    try:
        while waiting or running:
            for slot in range(slots):
                if waiting and slot not in running:
                    if gpus:
                        executor.update_parameters(visible_gpus=list(gpus[slot]))
                    running[slot] = (job := waiting.pop(0), executor.submit(job))
                    say(f"{job.name}: started; log {running[slot][1].paths.stderr}")
            for slot in [slot for slot, (_, handle) in running.items() if handle.done()]:
                ended.append(_end(*running.pop(slot)))
                say(f"{ended[-1].job.name}: {_words(ended[-1])} ({len(ended)} of {len(jobs)} jobs)")
            time.sleep(0.2)
    finally:
        stop([handle for _, handle in running.values()])
    return ended


def stop(handles: Sequence[Any]) -> None:
    """End local jobs with all that they have started, at once: what they had finished is in files."""
    family: list[psutil.Process] = []
    for handle in handles:
        with contextlib.suppress(psutil.Error):
            controller = psutil.Process(int(handle.job_id))
            family += [controller, *controller.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(family, timeout=5)


def _end(job: Job, handle: Any) -> Ended:
    """Read a job's answer; where it could not give one, the reason is the end of its log."""
    error = handle.exception()
    if error is None:
        return Ended(job, json.loads(handle.result()))
    reason = f"ended early ({handle.state}); the same command continues it"
    if isinstance(error, submitit().core.utils.FailedJobError):
        lines = [line.strip() for line in str(error).partition("You can check")[0].splitlines()]
        reason = next((line for line in reversed(lines) if line.strip("- ")), reason)
    return Ended(job, {"failures": {job.name: f"{reason}; log {handle.paths.stderr}"}})


def _words(ended: Ended) -> str:
    return "; ".join(ended.failures.values()) or "done"


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)
