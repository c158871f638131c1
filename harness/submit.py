"""Hand a study or a tuning to a cluster: `python -m harness.submit run study=few_step slurm.partition=gpu slurm.gpus=1`.

python -m harness.submit --help     options and examples
"""

from __future__ import annotations

import dataclasses
import os
import sys

from harness.errors import EXIT_CODE, UserError, nearest

_USAGE = """usage: python -m harness.submit run|tune [arguments of harness.run or harness.tune] [slurm.KEY=VALUE ...] [options]

  run     the cells of a study, a job for each model that is trained; a last job publishes as harness.run does
  tune    slurm.jobs=N jobs, each a command of harness.tune that joins the same study (see tune.storage)

  cluster=slurm|local  SLURM, or submitit's stand-in for it on this machine
  wait=true|false      whether to wait for the jobs (cluster=local always does)

options:
  --help              this text
  --config-dir DIR    a folder of your own with study/, method/, ... beside those of the package

examples:
  python -m harness.submit run study=few_step slurm.partition=gpu slurm.gpus=1 slurm.timeout_min=240
  python -m harness.submit run study=exact train.accumulate=4 compute.processes=4 slurm.gpus=4 wait=false
  python -m harness.submit tune study=exact only_tasks=[binsaw] tune=latent slurm.jobs=8 tune.storage=postgresql://me@host/db

slurm.KEY and its default:
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done (or submitted), 1 a job or a cell failed, 2 bad input (one line), 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    from harness.cluster.options import read_options
    from harness.run import _split as split_arguments

    overrides, folders, show_help, show_config = split_arguments(arguments)
    if show_help or not overrides:
        print(_help())
        return 0 if show_help else EXIT_CODE
    action, *rest = overrides
    if action not in ("run", "tune"):
        raise UserError(f"'{action}' comes first and is unknown{nearest(action, ('run', 'tune'))}")
    if show_config:
        raise UserError(f"--cfg: ask harness.{action}, with the same arguments but for slurm., cluster= and wait=")
    cfg, own = read_options(rest)
    from harness.cluster.executor import submitit
    from harness.cluster.submit import submit_study, submit_tune
    from harness.tracking.uri import redact

    submitit()  # refused before data are read
    command = "python -m harness.submit " + " ".join(map(redact, arguments))
    result = submit_study(cfg, own, folders, command) if action == "run" else submit_tune(cfg, own, folders)
    for line in (result.text, *result.places):
        if line:
            print(line)
    for name, reason in result.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if result.failures else 0


def _help() -> str:
    from harness.cluster.options import SlurmConfig

    defaults = dataclasses.asdict(SlurmConfig())
    return _USAGE + "\n".join(f"  {name:<16} {value!r}" for name, value in defaults.items())


if __name__ == "__main__":
    sys.exit(main())
