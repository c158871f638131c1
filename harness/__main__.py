"""`python -m harness`: what there is to run."""

from __future__ import annotations

import sys

_COMMANDS = """\
python -m harness.run study=smoke        run a study: train, sample, score, report
python -m harness.tune tune=latent       search for better values with Optuna
python -m harness.submit study=few_step  run a study or a search as SLURM jobs
python -m harness.score samples=a.jsonl  score somebody's samples as a study scores its own
python -m harness.sample run=runs/smoke  draw from a model that a study has trained
python -m harness.export run=runs/smoke  write one of its models as a folder that holds all it needs
python -m harness.bound run=runs/smoke   bounds of its methods on a corpus that they were not trained on
python -m harness.check method=mdlm      what a method, sampler or metric owes the harness, checked
python -m harness.tracking.ui runs       look at the runs in MLflow

Each prints its arguments with --help, and starts nothing without any. A study that was stopped goes on with the same command.
"""


def main() -> int:
    """Print the commands; 0."""
    print(_COMMANDS, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
