"""What the tests of jobs need: a method that takes its time, programs that stand in for SLURM's, and submitit's own executor.

Shapes: B batch, L tokens.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from submitit import LocalExecutor
from torch import Tensor

from baselines.mdlm import MDLM, MDLMOptions
from harness import submit
from harness.interface import Loss
from harness.jobs.launch import python_path
from harness.slurm.jobs import Job
from tests.kit.study_kit import Said
from tests.kit.study_plugins import YAML, write_configs


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
    (folder / "method" / "slow.yaml").write_text(
        "# Takes its time\n_target_: tests.kit.slurm_kit.Slow\nsamplers: {ancestral: {}}\n"
    )
    return options


_RUNS = """
number=$((100 + $(ls {box} | grep -c 'sh$')))
cp "$1" {box}/$number.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
after=$(sed -n 's/^#SBATCH --dependency=afterany:\\([0-9]*\\)$/\\1/p' "$1")
(
  while [ -n "$after" ] && [ ! -e {box}/$after.done ]; do sleep 0.1; done
  for index in $(seq 0 ${{last:-0}}); do
    if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$index; fi
    SLURM_JOB_ID=$number sh {box}/$number.sh
    if [ -n "$last" ]; then echo "${{number}}_$index|COMPLETED|" >> {states}; else echo "$number|COMPLETED|" >> {states}; fi
  done
  touch {box}/$number.done
) > {box}/$number.log 2>&1 &
echo "Submitted batch job $number"
"""


def fake_slurm(folder: Path, monkeypatch, runs: bool = False) -> Path:
    """Programs called `sbatch`, `srun`, `scancel` and `sacct` at the head of PATH; where the submitted scripts go.

    Jobs are numbered from 100; with `runs` they are run here, one after another and after what they depend on. `states` in
    the same folder is what the accounting says.
    """
    box, states = folder / "box", folder / "states"
    box.mkdir()
    keeps = f'n=$((100 + $(ls {box} | wc -l)))\ncp "$1" {box}/$n.sh\necho "Submitted batch job $n"\n'
    programs = {
        "sbatch": _RUNS.format(box=box, states=states) if runs else keeps,
        "srun": 'while [ "${1#-}" != "$1" ]; do case "$1" in --unbuffered) shift;; *) shift 2;; esac; done\nexec "$@"\n',
        "scancel": f"echo $@ >> {folder}/cancelled\n",
        "sacct": f'echo "JobID|State|NodeList"\ncat {states}\n',
    }
    states.write_text("")
    for name, text in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return box


def run_here(job: Job, folder: Path) -> Any:
    """The job in the hands of submitit's executor for one machine, which puts it back into its queue as SLURM does."""
    os.environ["PYTHONPATH"] = python_path()
    executor = LocalExecutor(folder, max_num_timeout=5)
    executor.update_parameters(timeout_min=5, signal_delay_s=30)
    return executor.submit(job)


def interrupt(checkpoints: str, runs: Path, times: int, seconds: float = 100.0) -> list[int]:
    """Send the signal of preemption and of timeouts `times` times, each to another attempt after its first checkpoint.

    Returns the attempts' process ids, fewer where the job has ended before.
    """
    stopped: list[int] = []
    seen, until = 0, time.monotonic() + seconds
    while len(stopped) < times and time.monotonic() < until:
        time.sleep(0.1)
        saved = max((path.stat().st_mtime_ns for path in runs.glob(checkpoints)), default=0)
        for process in psutil.Process().children(recursive=True) if saved > seen else []:
            with contextlib.suppress(psutil.Error):
                if "submitit.core._submit" in process.cmdline() and process.pid not in stopped:
                    process.send_signal(signal.SIGUSR2)
                    stopped.append(process.pid)
                    process.wait(20)
                    seen = max((path.stat().st_mtime_ns for path in runs.glob(checkpoints)), default=0)
                    break
    return stopped


def call(arguments: list[str]) -> Said:
    """What `python -m harness.submit` with these arguments says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = submit.main(arguments)
    return Said(code, out.getvalue(), err.getvalue())
