"""Hand a study or a search to SLURM: `python -m harness.submit run study=few_step slurm.partition=gpu slurm.gpus=1`.

python -m harness.submit --help          options and examples
python -m harness.submit --help slurm    every key of the section
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import cli
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.study.outcome import Outcome

_USAGE = f"""usage: python -m harness.submit run|tune [arguments of harness.run or harness.tune] [slurm.KEY=VALUE ...] [options]

  run     a study, a job for each model that is trained; a last job publishes as harness.run does
  tune    slurm.jobs=N jobs, each a command of harness.tune that joins the same study (see tune.storage)

  wait=true|false     whether to wait for the jobs

options:
{cli.OPTIONS}

examples:
  python -m harness.submit run study=few_step slurm.partition=gpu slurm.gpus=1 slurm.timeout_min=240
  python -m harness.submit run study=exact train.accumulate=4 compute.processes=4 slurm.gpus=4 wait=false
  python -m harness.submit tune study=exact only_tasks=[binsaw] tune=latent slurm.jobs=8 tune.storage=postgresql://me@host/db

"""
_ACTIONS = ("run", "tune")


def main(words: list[str] | None = None) -> int:
    """Submit a study or a search; the exit code (see `cli.main`). Without wait, 0 says that all was submitted."""
    return cli.main(_run, _usage, words)


def _run(given: cli.Arguments) -> Outcome | str:
    if not given.overrides:
        raise UserError("say first what to submit, run or tune; --help shows examples")
    action, *rest = given.overrides
    if action not in _ACTIONS:
        raise UserError(f"'{action}' comes first and is unknown{nearest(action, _ACTIONS)}")
    if given.show_config:
        raise UserError(f"--cfg: ask harness.{action}, with the same arguments but for slurm. and wait=")
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "harness.submit needs the library submitit; install it with: pip install 'few-step-harness[slurm]'"
        )
    from harness.slurm.submit import submit_search, submit_study  # submitit is an extra; torch takes seconds

    if action == "run":
        return submit_study(rest, given.folders, given.command("harness.submit"))
    return submit_search(rest, given.folders)


def _usage(folders: list[Path]) -> str:
    from harness.config.help import keys_text  # start-up time: Hydra and the methods

    return _USAGE + keys_text(["slurm"], folders)


if __name__ == "__main__":
    sys.exit(main())
