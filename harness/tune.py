"""Search what a study leaves open: `python -m harness.tune study=exact only_tasks=[binsaw] tune=latent`.

python -m harness.tune --help                                     searches, their keys, and examples
python -m harness.tune study=few_step tune=latent --cfg job       the resolved configuration
python -m harness.tune study=few_step tune=latent plan=true       what would be searched, and where
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import EXIT_CODE, UserError

if TYPE_CHECKING:
    from harness.search.loaded import LoadedTune
    from harness.study.outcome import Outcome

_USAGE = """usage: python -m harness.tune [study=NAME] tune=NAME [tune.KEY=VALUE ...] [arguments of harness.run ...] [options]

options:
  --help              this text
  --cfg job           print the resolved search, and the configuration that it varies, and stop
  --config-dir DIR    a folder of your own with tune/, study/, method/, ... beside those of the package

examples:
  python -m harness.tune study=exact only_tasks=[binsaw] tune=latent tune.trials=40 tune.workers=2
  python -m harness.tune study=few_step tune=schedule plan=true
  python -m harness.tune study=few_step tune=recipe tune.storage=postgresql://me@host/db   (on any number of hosts)

The same command continues a search that was stopped; with a larger tune.trials it goes on from there.

searches (tune=NAME):
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 workers or the confirmation failed, 2 bad input (one line), 130 interrupted."""
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
    from harness.run import _split as split_arguments

    overrides, folders, show_help, show_config = split_arguments(arguments)
    if show_help:
        print(_help(folders))
        return 0
    from harness.search.load import load_tune

    loaded = load_tune(overrides, folders)
    if show_config:
        import yaml

        print(yaml.safe_dump_all([{"tune": loaded.tree}, loaded.base.tree], sort_keys=False), end="")
        return 0
    if loaded.base.cfg.plan:
        print(describe(loaded))
        return 0
    from harness.search.runner import run_search

    return _ended(run_search(loaded))


def describe(loaded: LoadedTune) -> str:
    """What would be searched, in lines; the storage is not opened."""
    from harness.search.runner import workers_of
    from harness.search.storage import study_name
    from harness.tracking.uri import redact

    cfg = loaded.cfg
    lines = [f"tune {study_name(loaded)}: {cfg.trials} trials of {cfg.method}, {workers_of(loaded)} at a time"]
    for (name, objective), direction in zip(cfg.objectives.items(), loaded.directions, strict=True):
        lines.append(f"  {direction} {name}: {objective.column or 'the headline column'} at NFE {objective.nfe}")
    lines += [f"  subject to {name}: {c.column} at NFE {c.nfe}" for name, c in cfg.constraints.items()]
    for key, d in cfg.space.items():
        values = ", ".join(map(str, d.choices)) if d.choices else f"{d.low:g} .. {d.high:g}{' (log)' if d.log else ''}"
        when = "".join(f" where {k} is {' or '.join(map(str, v))}" for k, v in d.when.items())
        lines.append(f"  {key}: {values}{when}")
    lines.append(f"storage {redact(cfg.storage) or loaded.folder / 'journal.log'}; results in {loaded.folder}")
    return "\n".join(lines)


def _ended(outcome: Outcome) -> int:
    """Print how it ended; the exit code."""
    if outcome.table:
        print(outcome.table)
    for place in outcome.places:
        print(place)
    for name, reason in outcome.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _help(folders: list[Path]) -> str:
    from harness.config.registry import find_entries, studies_folder

    entries = find_entries([studies_folder(), *folders]).get("tune", {})
    return _USAGE + "\n".join(f"  {name:<12} {entry.about}" for name, entry in sorted(entries.items()))


if __name__ == "__main__":
    sys.exit(main())
