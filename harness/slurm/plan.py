"""From a command line to jobs: the models of a study, or the commands of a search; checked before any is submitted."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path

from harness.config.compose import parse
from harness.config.load import Loaded, load_draft
from harness.config.schema import RunConfig
from harness.config.slurm import SlurmConfig
from harness.errors import UserError
from harness.search.load import load_tune
from harness.slurm.jobs import PRIVATE_VARIABLE, Job, load_any, parts_of
from harness.study.cells import data_cell, make_cells
from harness.study.check import check_study
from harness.study.session import Session
from harness.study.tasks import by_weights
from harness.tracking.uri import redact

#: Sections of the configuration that are this command's alone.
SECTIONS = ("slurm", "wait")


@dataclass(frozen=True)
class Plan:
    """Jobs that may run at the same time, where their files go, and what each asks for."""

    name: str
    jobs: list[Job]
    folder: Path
    slurm: SlurmConfig
    wait: bool  # until all is done
    gpus: int
    cpus: int
    last: Job | None = None  # publishes when the others are done


def _of_jobs(arguments: list[str]) -> tuple[str, ...]:
    """What jobs are given of the arguments: not what is ours, nor what holds a login, which is in their environment then."""
    theirs = [
        argument
        for argument, parsed in zip(arguments, parse(arguments), strict=True)
        if parsed.key_or_group.split(".")[0] not in SECTIONS
    ]
    private = [a for a in theirs if redact(a) != a or a.lstrip("+").startswith("tune.storage=")]
    os.environ[PRIVATE_VARIABLE] = json.dumps(private)
    return tuple(a for a in theirs if a not in private)


def _gpus_of(cfg: RunConfig) -> int:
    """GPUs of a job: as told, or one for each process that trains, or none where the study runs on CPUs."""
    if cfg.slurm.gpus >= 0:
        return cfg.slurm.gpus
    return 0 if cfg.compute.device == "cpu" else cfg.compute.processes


# ---- a study ----------------------------------------------------------------------------------------------------------
def plan_study(arguments: list[str], folders: list[Path], command: str) -> Plan:
    """For each task a job for the judge and all that is not trained, and one for each model with the cells that draw from it.

    Only a job knows what is done: what files are called depends on the device that it gets. Raises `UserError` for what the
    runner would refuse.
    """
    parts = parts_of(load_any(arguments, folders, SECTIONS))
    cfg = next(iter(parts.values())).cfg
    if cfg.plan:
        raise UserError("plan=true: ask harness.run, with the same arguments; harness.submit only submits")
    gpus = _gpus_of(cfg)
    _need_one_model(gpus, cfg.compute.processes)
    last = Job("publish", "publish", _of_jobs(arguments), tuple(map(str, folders)), command=command)
    jobs, folder = [], Path(cfg.runs_dir).resolve() / cfg.study.name
    for task, part in parts.items():
        try:
            jobs += _jobs_of(last, task, part)
        except UserError as error:
            raise UserError(f"task {task}: {error}" if task else str(error)) from error
    folder = folder if "" in parts else folder.parent
    cpus = cfg.slurm.cpus or cfg.compute.threads * cfg.compute.processes
    return Plan(folder.name, jobs, folder / "jobs", cfg.slurm, cfg.wait, gpus, cpus, last)


def _need_one_model(gpus: int, processes: int) -> None:
    if gpus not in (0, processes):
        other = f", or compute.processes={gpus} and a train.accumulate that it divides" if gpus > 1 else ""
        raise UserError(
            f"slurm.gpus={gpus}: a job trains one model, on compute.processes={processes} GPU(s); "
            f"use slurm.gpus={processes}{other}"
        )


def _jobs_of(whole: Job, task: str, part: Loaded) -> list[Job]:
    tree = copy.deepcopy(part.tree)
    # A login node need not have the devices of the nodes that work.
    tree["compute"] |= {"device": "cpu", "precision": "float32", "compile": "false"}
    session = Session(tree, server=part.cfg.tracking.uri)
    cells = make_cells(session)
    check_study(session, cells, data_cell(session))
    models = ["", *(weights.name for weights in by_weights(cells) if weights.trained)]
    place = f"{task}/" if task else ""
    return [
        Job("tasks", place + (model or "judge"), whole.arguments, whole.config_dirs, task, model) for model in models
    ]


# ---- a search ---------------------------------------------------------------------------------------------------------
def plan_search(arguments: list[str], folders: list[Path]) -> Plan:
    """`slurm.jobs` equal jobs, each of which is one command of `harness.tune` that joins the study."""
    cfg = load_draft(arguments, folders, ("tune", *SECTIONS)).loaded().cfg
    if cfg.plan:
        raise UserError("plan=true: ask harness.tune, with the same arguments; harness.submit only submits")
    own = list(_of_jobs(arguments))
    private = json.loads(os.environ[PRIVATE_VARIABLE])
    loaded = load_tune([*own, *private, "compute.device=cpu", "compute.precision=float32"], folders)
    gpus = _gpus_of(cfg)
    workers = loaded.cfg.workers or max(1, gpus // cfg.compute.processes)
    own += [] if loaded.cfg.workers else [f"tune.workers={workers}"]
    jobs = [Job("tune", f"tune-{i}", tuple(own), tuple(map(str, folders))) for i in range(cfg.slurm.jobs)]
    cpus = cfg.slurm.cpus or cfg.compute.threads * cfg.compute.processes * workers
    return Plan(loaded.cfg.name, jobs, loaded.folder / "jobs", cfg.slurm, cfg.wait, gpus, cpus)
