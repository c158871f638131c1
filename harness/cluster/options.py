"""What `harness.submit` is told besides the study: which scheduler, and what it is asked for. Typed, unknown keys refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.messages import one_line
from harness.config.schema import ComputeConfig, need
from harness.config.slurm import SlurmConfig
from harness.errors import UserError, nearest

CLUSTERS = ("slurm", "local")


@dataclass
class SubmitConfig:
    """All that is not the study's."""

    cluster: str = "slurm"
    wait: bool = True  # until all is done and published
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


def read_options(arguments: list[str]) -> tuple[SubmitConfig, list[str]]:
    """The options among `arguments` (`cluster=`, `wait=`, `slurm.KEY=`), and all others; raises `UserError`."""
    tree = OmegaConf.structured(SubmitConfig)
    known = [key for key in OmegaConf.to_container(tree) if key != "slurm"]
    known += [f"slurm.{key}" for key in OmegaConf.to_container(tree.slurm)]
    others = []
    for argument in arguments:
        key = argument.split("=", 1)[0]
        if key.split(".")[0].lstrip("+~") not in ("cluster", "wait", "slurm"):
            others.append(argument)
            continue
        if key not in known and not key.startswith("slurm.more."):
            raise UserError(f"unknown key '{key}'{nearest(key, known)}")
        tree = _merged(tree, argument)
    cfg: SubmitConfig = OmegaConf.to_object(tree)
    _check(cfg)
    return cfg, others


def _merged(tree: Any, argument: str) -> Any:
    try:
        override = OverridesParser.create().parse_override(argument)
        value: Any = override.value()
        for part in reversed(override.key_or_group.split(".")):
            value = {part: value}
        return OmegaConf.merge(tree, value)
    except HydraException as error:
        raise UserError(f"cannot read the argument '{argument}'; write key=value, lists as [a,b]") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{argument}: {one_line(error)}") from error


def _check(cfg: SubmitConfig) -> None:
    s = cfg.slurm
    need(cfg.cluster in CLUSTERS, "cluster", cfg.cluster, f"is unknown{nearest(cfg.cluster, CLUSTERS)}")
    need(0 < s.timeout_min < math.inf, "slurm.timeout_min", s.timeout_min, "must be above 0 minutes")
    longest = int(s.timeout_min * 60)
    need(
        0 < s.signal_delay_s < longest, "slurm.signal_delay_s", s.signal_delay_s,
        f"must be above 0 and below the {longest} seconds of slurm.timeout_min",
    )  # fmt: skip
    need(s.gpus >= -1, "slurm.gpus", s.gpus, "must be 0 or more, or -1 for what the study needs")
    for key in ("cpus", "at_a_time", "max_timeouts", "mem_gb"):
        need(getattr(s, key) >= 0, f"slurm.{key}", getattr(s, key), "must be 0 or more")
    need(s.jobs >= 1, "slurm.jobs", s.jobs, "must be 1 or more")
    if cfg.cluster == "local" and not cfg.wait:
        raise UserError("wait=false: the jobs of cluster=local are started by this command one after another; drop it")


def gpus_of(cfg: SubmitConfig, compute: ComputeConfig) -> int:
    """GPUs of a job: as told, or one for each process that trains, or none where the study runs on CPUs."""
    if cfg.slurm.gpus >= 0:
        return cfg.slurm.gpus
    return 0 if compute.device == "cpu" else compute.processes
