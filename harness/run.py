"""Run a study: `python -m harness.run study=few_step`, with Hydra's override syntax (`key=value`).

python -m harness.run --help                       groups, their choices, and examples
python -m harness.run --help scale method=seq      every key of a section or a choice
python -m harness.run study=few_step --cfg job     the resolved configuration
python -m harness.run study=few_step plan=true     what would run, and for how long
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import EXIT_CODE, UserError

if TYPE_CHECKING:
    from harness.config.load import LoadedSuite
    from harness.study.outcome import Outcome

_USAGE = """usage: python -m harness.run [study=NAME] [GROUP=CHOICE ...] [KEY=VALUE ...] [options]

options:
  --help              this text
  --help WORD ...     every key of a section or a choice, with default and range: --help scale train method=seq
  --cfg job           print the resolved configuration and stop (of a study with tasks: one document for each)
  --config-dir DIR    a folder of your own with study/, method/, ... beside those of the package
  +best=PATH          the configuration that harness.tune found (its best.yaml); other arguments win over it

examples:
  python -m harness.run study=few_step plan=true
  python -m harness.run study=few_step data=text data.path=books study.nfe=[2,4,8] only=[mdlm,seq]
  python -m harness.run study=exact only_tasks=[binsaw,hmm] study.unmet=skip
  python -m harness.run study=few_step methods.seq.slots=16 +method@methods.wide=mdlm methods.wide.width_factor=1.5
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a cell failed, 2 bad input (one line on standard error), 130 interrupted."""
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


def _split(arguments: list[str]) -> tuple[list[str], list[Path], bool, bool]:
    """Overrides, configuration folders, and whether help or the configuration was asked for."""
    overrides, folders, show_help, show_config = [], [], False, False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--help", "-h"):
            show_help = True
        elif argument in ("--cfg", "--config-dir", "-c"):
            value = next(rest, None)
            if value is None:
                raise UserError(
                    f"{argument} needs a value, for example {argument} {'job' if argument != '--config-dir' else 'DIR'}"
                )
            if argument == "--config-dir":
                folders.append(Path(value))
            elif value != "job":
                raise UserError(f"--cfg {value}: only 'job' can be shown; write --cfg job")
            else:
                show_config = True
        elif argument.startswith("--"):
            raise UserError(f"unknown option '{argument}'; options are --help, --cfg job and --config-dir DIR")
        else:
            overrides.append(argument)
    return overrides, folders, show_help, show_config


def _run(arguments: list[str]) -> int:
    overrides, folders, show_help, show_config = _split(arguments)
    if show_help:
        print(_help(folders, overrides))
        return 0
    from harness.config.load import load, load_suite

    suite = load_suite(overrides, folders)
    command = "python -m harness.run " + " ".join(arguments)
    if suite is not None:
        return _run_suite(suite, command, show_config)
    loaded = load(overrides, folders)
    if show_config:
        _show([loaded.tree])
        return 0
    from harness.study.session import Session

    session = Session(loaded.tree)
    if loaded.cfg.plan:
        from harness.study.plan import describe

        print(describe(session))
        return 0
    from harness.study.runner import run_study

    return _ended(run_study(session, command))


def _run_suite(loaded: LoadedSuite, command: str, show_config: bool) -> int:
    """The same for a study with tasks."""
    if show_config:
        _show([part.tree for part in loaded.parts.values()])
        return 0
    from harness.study.suite import Suite, describe_suite, run_suite

    suite = Suite(loaded)
    if all(part.cfg.plan for part in loaded.parts.values()):
        print(describe_suite(suite))
        return 0
    return _ended(run_suite(suite, command))


def _show(trees: list[dict[str, Any]]) -> None:
    import yaml

    print(yaml.safe_dump_all(trees, sort_keys=False), end="")


def _ended(outcome: Outcome) -> int:
    """Print how it ended; the exit code."""
    print(outcome.table)
    for place in outcome.places:
        print(place)
    for name, reason in outcome.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _help(folders: list[Path], words: list[str]) -> str:
    from harness.config.help import groups_text, keys_text  # start-up time: Hydra and the methods

    return keys_text(words, folders) if words else f"{_USAGE}\ngroups and choices:\n{groups_text(folders)}"


if __name__ == "__main__":
    sys.exit(main())
