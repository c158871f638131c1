"""Search what a study leaves open: `python -m harness.tune study=exact only_tasks=[binsaw] tune=latent`.

python -m harness.tune --help                                     searches, their keys, and examples
python -m harness.tune study=few_step tune=latent --cfg job       the resolved configuration
python -m harness.tune study=few_step tune=latent plan=true       what would be searched, and where
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import cli

if TYPE_CHECKING:
    from harness.search.loaded import LoadedTune
    from harness.study.outcome import Outcome

_USAGE = f"""usage: python -m harness.tune [study=NAME] tune=NAME [tune.KEY=VALUE ...] [arguments of harness.run ...] [options]

options:
{cli.OPTIONS}
  --cfg job           print the resolved search, and the configuration that it varies, and stop

examples:
  python -m harness.tune study=exact only_tasks=[binsaw] tune=latent tune.trials=40 tune.workers=2
  python -m harness.tune study=few_step tune=schedule plan=true
  python -m harness.tune study=few_step tune=recipe tune.storage=postgresql://me@host/db   (on any number of hosts)

The same command continues a search that was stopped; with a larger tune.trials it goes on from there.

searches (tune=NAME):
"""


def main(words: list[str] | None = None) -> int:
    """Search; the exit code (see `cli.main`)."""
    return cli.main(_run, _usage, words)


def _run(given: cli.Arguments) -> Outcome | str:
    from harness.search.load import load_tune  # start-up time: not for --help

    loaded = load_tune(given.overrides, given.folders)
    if given.show_config:
        return cli.as_yaml([{"tune": loaded.tree}, loaded.base.tree])
    if loaded.base.cfg.plan:
        return describe(loaded)
    from harness.search.runner import run_search  # start-up time: not for --cfg and plan=true

    return run_search(loaded)


def describe(loaded: LoadedTune) -> str:
    """What would be searched, in lines; the storage is not opened."""
    from harness.search.runner import workers_of  # start-up time: torch, not for --help and bad input
    from harness.tracking.uri import redact

    cfg = loaded.cfg
    lines = [f"tune {loaded.name}: {cfg.trials} trials of {cfg.method}, {workers_of(loaded)} at a time"]
    for (name, objective), direction in zip(cfg.objectives.items(), loaded.directions, strict=True):
        lines.append(f"  {direction} {name}: {objective.column or 'the headline column'} at NFE {objective.nfe}")
    lines += [f"  subject to {name}: {c.column} at NFE {c.nfe}" for name, c in cfg.constraints.items()]
    for key, d in cfg.space.items():
        lines.append(f"  {key}: {d.values}{f' where {d.conditions}' if d.when else ''}")
    lines.append(f"storage {redact(cfg.storage) or loaded.folder / 'journal.log'}; results in {loaded.folder}")
    return "\n".join(lines)


def _usage(folders: list[Path]) -> str:
    from harness.config.registry import find_entries, studies_folder  # start-up time: Hydra

    entries = find_entries([studies_folder(), *folders], typed=False).get("tune", {})
    return _USAGE + "\n".join(f"  {name:<12} {entry.about}" for name, entry in sorted(entries.items()))


if __name__ == "__main__":
    sys.exit(main())
