"""Run a study: `python -m harness.run study=few_step`, with Hydra's override syntax (`key=value`).

python -m harness.run --help                       groups, their choices, and examples
python -m harness.run --help scale method=seq      every key of a section or a choice
python -m harness.run study=few_step --cfg job     the resolved configuration
python -m harness.run study=few_step plan=true     what would run, and for how long
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import cli

if TYPE_CHECKING:
    from harness.config.load import Loaded, LoadedSuite
    from harness.study.outcome import Outcome

_USAGE = f"""usage: python -m harness.run [study=NAME] [GROUP=CHOICE ...] [KEY=VALUE ...] [options]

options:
{cli.OPTIONS}
  --cfg job           print the resolved configuration and stop (of a study with tasks: one document for each)
  +best=PATH          the configuration that harness.tune found (its best.yaml); other arguments win over it

examples:
  python -m harness.run study=few_step plan=true
  python -m harness.run study=few_step data=text data.path=books study.nfe=[2,4,8] only=[mdlm,seq]
  python -m harness.run study=exact only_tasks=[binsaw,hmm] study.unmet=skip
  python -m harness.run study=few_step methods.seq.slots=16 +method@methods.wide=mdlm methods.wide.width_factor=1.5

groups and choices:
"""


def main(words: list[str] | None = None) -> int:
    """Run a study; the exit code (see `cli.main`)."""
    return cli.main(_run, _usage, words)


def _run(given: cli.Arguments) -> Outcome | str:
    from harness.config.load import load, load_suite  # start-up time: not for --help

    suite = load_suite(given.overrides, given.folders)
    if suite is not None:
        _say(suite.parts.values())
        return _run_suite(suite, given)
    loaded = load(given.overrides, given.folders)
    _say([loaded])
    return _run_study(loaded, given)


def _say(parts: Iterable[Loaded]) -> None:
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        print(note, file=sys.stderr)


def _run_study(loaded: Loaded, given: cli.Arguments) -> Outcome | str:
    if given.show_config:
        return cli.as_yaml([loaded.tree])
    from harness.study.plan import describe  # start-up time: torch, not for --cfg and bad input
    from harness.study.runner import run_study
    from harness.study.session import Session

    session = Session(loaded.tree, server=loaded.cfg.tracking.uri)
    return describe(session) if loaded.cfg.plan else run_study(session, given.command("harness.run"))


def _run_suite(loaded: LoadedSuite, given: cli.Arguments) -> Outcome | str:
    """The same for a study with tasks."""
    if given.show_config:
        return cli.as_yaml([part.tree for part in loaded.parts.values()])
    from harness.study.suite import Suite, describe_suite, run_suite  # start-up time, as above

    suite = Suite(loaded)
    if all(part.cfg.plan for part in loaded.parts.values()):
        return describe_suite(suite)
    return run_suite(suite, given.command("harness.run"))


def _usage(folders: list[Path]) -> str:
    from harness.config.help import groups_text  # start-up time: Hydra and the methods

    return _USAGE + groups_text(folders)


if __name__ == "__main__":
    sys.exit(main())
