"""From a command line to jobs: a study's judge and its cells, or the workers of a tuning; checked before any is submitted."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from harness.cluster.jobs import PRIVATE_VARIABLE, Job, unfinished
from harness.cluster.options import SubmitConfig, gpus_of
from harness.errors import UserError
from harness.study.cells import make_cells
from harness.study.runner import worker_count
from harness.study.session import Session
from harness.tracking.uri import redact
from harness.training.distributed import gpu_groups


@dataclass(frozen=True)
class Plan:
    """Jobs that may run at the same time, where their files go, and what each asks for."""

    name: str
    jobs: list[Job]
    folder: Path
    gpus: int
    cpus: int
    slots: int = 1  # jobs that fit on this machine
    devices: list[list[int]] = field(default_factory=list)  # GPUs of each slot
    last: Job | None = None  # publishes when the others are done


def public(arguments: list[str]) -> list[str]:
    """The arguments without those that hold a login, which jobs find in their environment from here on."""
    private = [a for a in arguments if redact(a) != a or a.lstrip("+").startswith("tune.storage=")]
    os.environ[PRIVATE_VARIABLE] = json.dumps(private)
    return [a for a in arguments if a not in private]


# ---- a study ----------------------------------------------------------------------------------------------------------
def plan_study(cfg: SubmitConfig, arguments: list[str], folders: list[Path], command: str) -> Plan:
    """For each task a job for the judge and all that is not trained, and one for each set of cells with the same weights.

    On this machine, cells whose files are there are left out. Elsewhere only the job can know: what a cell's files are
    called depends on the device that it gets. Raises `UserError` for what the runner would refuse.
    """
    last = Job("publish", "publish", tuple(public(arguments)), tuple(map(str, folders)), command=command)
    sessions = last.sessions()
    first = next(iter(sessions.values()))
    compute, is_suite = first.cfg.compute, "" not in sessions
    if first.cfg.plan:
        raise UserError("plan=true: ask harness.run, with the same arguments; harness.submit only submits")
    gpus = _own_gpus(cfg, first) if cfg.cluster == "local" else gpus_of(cfg, compute)
    if gpus not in (0, compute.processes):
        other = f", or compute.processes={gpus} and a train.accumulate that it divides" if gpus > 1 else ""
        raise UserError(
            f"slurm.gpus={gpus}: a job trains one model, on compute.processes={compute.processes} GPU(s); "
            f"use slurm.gpus={compute.processes}{other}"
        )
    jobs = []
    for task, session in sessions.items():
        session = session if cfg.cluster == "local" else _elsewhere(session)
        try:
            jobs += _jobs_of(last, task, session, skip=cfg.cluster == "local")
        except UserError as error:
            raise UserError(f"task {task}: {error}" if task else str(error)) from error
    folder = first.folder.parent if is_suite else first.folder
    cpus = cfg.slurm.cpus or compute.threads * compute.processes
    slots, devices = (1, []) if cfg.cluster == "slurm" else _places(cfg, first, gpus)
    return Plan(folder.name, jobs, folder / "jobs", gpus, cpus, slots, devices, last)


def _jobs_of(whole: Job, task: str, session: Session, skip: bool) -> list[Job]:
    cells = make_cells(session)
    _ = session.reference, session.metrics, session.judge
    lacking = unfinished(session) if skip else None
    if lacking == []:
        return []
    wanted = [cell for cell in cells if lacking is None or cell.name in lacking]
    groups: dict[Path, list[str]] = {}
    for cell in wanted:
        if cell.trained:
            groups.setdefault(cell.home, []).append(cell.name)
    counted = tuple(cell.name for cell in wanted if not cell.trained)
    place = f"{task}/" if task else ""

    def job(action: str, name: str, names: tuple[str, ...]) -> Job:
        return Job(action, place + name, whole.arguments, whole.config_dirs, task, names)

    return [job("judge", "judge", counted), *(job("cells", "+".join(n), tuple(n)) for n in groups.values())]


def _elsewhere(session: Session) -> Session:
    """The same study on a CPU: a login node need not have the devices of the nodes that work."""
    tree = copy.deepcopy(session.tree)
    tree["compute"] |= {"device": "cpu", "precision": "float32", "compile": "false"}
    return Session(tree)


def _own_gpus(cfg: SubmitConfig, session: Session) -> int:
    device = session.numerics.device
    if ":" in device:
        raise UserError(f"compute.device={device}: jobs of cluster=local get GPUs in turn; use compute.device=cuda")
    return gpus_of(cfg, session.cfg.compute) if device == "cuda" else 0


def _places(cfg: SubmitConfig, session: Session, gpus: int) -> tuple[int, list[list[int]]]:
    """How many jobs of so many GPUs this machine runs at a time, and the numbers of each one's GPUs."""
    slots = cfg.slurm.at_a_time or worker_count(session)
    if not gpus:
        return slots, []
    groups = [group.split(",") for group in gpu_groups(gpus)]
    if not all(name.isdigit() for group in groups for name in group):
        raise UserError(
            "CUDA_VISIBLE_DEVICES names GPUs by other than their numbers, which cluster=local cannot pass on"
        )
    return min(slots, len(groups)), [[int(name) for name in group] for group in groups]


# ---- a tuning ---------------------------------------------------------------------------------------------------------
def plan_tune(cfg: SubmitConfig, arguments: list[str], folders: list[Path]) -> Plan:
    """`slurm.jobs` equal jobs, each of which is one command of `harness.tune` that joins the study."""
    from harness.search.load import load_tune

    local = cfg.cluster == "local"
    loaded = load_tune([*arguments, *([] if local else ["compute.device=cpu", "compute.precision=float32"])], folders)
    compute = loaded.base.cfg.compute
    if loaded.base.cfg.plan:
        raise UserError("plan=true: ask harness.tune, with the same arguments; harness.submit only submits")
    if local:
        gpus = _own_gpus(cfg, Session(loaded.base.tree))
    else:
        named = [a.split("=", 1)[1] for a in arguments if a.startswith("compute.device=")]
        compute.device = named[-1] if named else "auto"
        gpus = gpus_of(cfg, compute)
    own = public(arguments)
    workers = loaded.cfg.workers or max(1, gpus // compute.processes)
    own += [] if loaded.cfg.workers else [f"tune.workers={workers}"]
    jobs = [Job("tune", f"tune-{i}", tuple(own), tuple(map(str, folders))) for i in range(cfg.slurm.jobs)]
    cpus = cfg.slurm.cpus or compute.threads * compute.processes * workers
    devices = []
    if local and gpus:
        devices = _places(cfg, Session(loaded.base.tree), gpus)[1]
        if len(devices) < len(jobs):
            raise UserError(f"slurm.jobs={len(jobs)}: this machine has GPUs for {len(devices)}; use that many")
    return Plan(loaded.cfg.name, jobs, loaded.folder / "jobs", gpus, cpus, len(jobs), devices)
