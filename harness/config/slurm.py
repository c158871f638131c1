"""The typed section `slurm`: what `harness.submit` asks a scheduler for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from harness.config.fields import ranged
from harness.errors import UserError


@dataclass
class SlurmConfig:
    """What each job asks for."""

    partition: str = ""  # of the cluster
    account: str = ""  # that pays
    qos: str = ""  # quality of service
    constraint: str = ""  # features that a node must have
    nodelist: str = ""  # nodes that may be used
    exclude: str = ""  # nodes that may not
    timeout_min: float = ranged(240.0, 0, above=True, unit="minutes")  # then a job is queued again, and goes on
    signal_delay_s: int = ranged(90, 1)  # how long before that it is told
    max_timeouts: int = ranged(1000, 0)  # how often it is put back
    gpus: int = ranged(-1, -1)  # of a job; -1: compute.processes, or none with compute.device=cpu
    cpus: int = ranged(0, 0)  # of a job; 0: compute.threads x compute.processes, for each worker of `tune`
    mem_gb: float = ranged(0.0, 0)  # of a job; 0: what the cluster gives
    at_a_time: int = ranged(0, 0)  # jobs at work together; 0: all
    jobs: int = ranged(1, 1)  # of `tune`
    setup: list[str] = field(default_factory=list)  # lines of shell before each job, such as [module load cuda]
    more: dict[str, str] = field(default_factory=dict)  # any other option of sbatch: slurm.more.reservation=NAME


def check_slurm(s: SlurmConfig) -> None:
    """Raise `UserError` for a signal that comes too late, and for text that would end its line in a job's script."""
    longest = int(s.timeout_min * 60)
    if s.signal_delay_s >= longest:
        raise UserError(
            f"slurm.signal_delay_s={s.signal_delay_s}: must be below the {longest} seconds of slurm.timeout_min"
        )
    words = {key: value for key, value in dataclasses.asdict(s).items() if isinstance(value, str)}
    words |= {f"more.{key}": value for key, value in s.more.items()}
    for key, value in words.items():
        check_line(f"slurm.{key}", value)


def check_line(key: str, value: str) -> None:
    """Raise `UserError` for a line feed and the like in what becomes part of a line of a job's script."""
    if not f"{key}{value}".isprintable():
        shown = f"{key}={value}".encode("unicode_escape").decode()
        raise UserError(f"{shown}: a line feed ends an option of sbatch; give it in one line")
