"""The typed section `slurm`: what `harness.submit` asks a scheduler for."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.config.fields import ranged


@dataclass
class SlurmConfig:
    """What each job asks for; `cluster=local` heeds times, gpus, at_a_time, jobs and max_timeouts."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    nodelist: str = ""
    exclude: str = ""
    timeout_min: float = ranged(240.0, 0, above=True, unit="minutes")  # then a job is queued again, to go on
    signal_delay_s: int = ranged(90, 1)  # how long before that it is told
    max_timeouts: int = ranged(1000, 0)  # how often it is put back
    gpus: int = ranged(-1, -1)  # of a job; -1: compute.processes, or none with compute.device=cpu
    cpus: int = ranged(0, 0)  # of a job; 0: compute.threads x compute.processes, for each worker of `tune`
    mem_gb: float = ranged(0.0, 0)  # of a job; 0: what the cluster gives
    at_a_time: int = ranged(
        0, 0
    )  # jobs of `run` at work together; 0: all (slurm), or as many as compute.workers (local)
    jobs: int = ranged(1, 1)  # of `tune`
    setup: list[str] = field(default_factory=list)  # lines of shell before each job, such as [module load cuda]
    more: dict[str, str] = field(default_factory=dict)  # any other option of sbatch: slurm.more.reservation=NAME
