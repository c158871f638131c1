"""What the tests of jobs need: a method that takes its time, and programs that stand in for SLURM's.

Shapes: B batch, L tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from baselines.mdlm import MDLM, MDLMOptions
from harness.interface import Loss
from tests.study_plugins import YAML, write_configs


@dataclass
class SlowOptions(MDLMOptions):
    pause: float = 0.0  # seconds that each loss takes longer; changes no number


class Slow(MDLM):
    """A denoiser whose training can be interrupted at leisure."""

    Options = SlowOptions
    title = "Slow"

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        time.sleep(self.options.pause)
        return super().loss(x_BL, generator)


def write_toy(folder: Path) -> list[str]:
    """The toy study with the slow method in it; options that make the command line read it."""
    options = write_configs(folder)
    assert "method/slow" not in YAML
    (folder / "method" / "slow.yaml").write_text("# Takes its time\n_target_: tests.cluster_kit.Slow\n")
    return options


def fake_slurm(folder: Path, monkeypatch) -> Path:
    """Programs called `sbatch`, `srun`, `scancel` and `sacct` at the head of PATH; where the submitted scripts go.

    Jobs are numbered from 100. `states` in the same folder is what the accounting says.
    """
    box = folder / "box"
    box.mkdir()
    programs = {
        "sbatch": f'n=$(ls {box} | wc -l)\ncp "$1" {box}/$((100 + n)).sh\necho "Submitted batch job $((100 + n))"\n',
        "srun": "exit 1\n",
        "scancel": f"echo $@ >> {folder}/cancelled\n",
        "sacct": f'echo "JobID|State|NodeList"\ncat {folder}/states\n',
    }
    (folder / "states").write_text("")
    for name, text in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    import os

    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return box
