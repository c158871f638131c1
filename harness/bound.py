"""Bounds of a study's methods on another corpus: `python -m harness.bound run=runs/few_step data=brown data.path=package`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import cli
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.study.outcome import Outcome

_USAGE = f"""usage: python -m harness.bound run=FOLDER data=NAME [data.KEY=VALUE ...] [only=METHOD,METHOD]

Prints the bound on -log p of the test split of a corpus (zero-shot), in the tokens of the study's own tokenizer, for all
methods of a study that have one; nats per token and per character. Rows are kept in elsewhere.json of the study's folder,
and its report has them when the study's command is run again.

  run=FOLDER      of a study that has run, such as runs/few_step
  data=NAME       and its keys, as harness.run has them
  only=NAMES      methods, or method/sampler, separated by commas

options:
{cli.OPTIONS}
"""


def main(words: list[str] | None = None) -> int:
    """Measure; the exit code (see `cli.main`)."""
    return cli.main(_run, lambda folders: _USAGE, words)


def _run(given: cli.Arguments) -> Outcome | str:
    from harness.config.load import load  # start-up time: not for --help

    of_data = [word for word in given.overrides if word.partition("=")[0].split(".")[0] == "data"]
    asked = cli.keyed([w for w in given.overrides if w not in of_data], {"run": str, "only": str}, ("run",))
    if not any(word.startswith("data=") for word in of_data):
        raise UserError("data= names no corpus; write data=brown data.path=FOLDER, or data=text data.path=FILE")
    node = load(["study=few_step", *of_data], given.folders).tree["data"]
    from harness.report.elsewhere import elsewhere_table  # start-up time: pandas
    from harness.study.cells import make_cells  # start-up time: torch, not for bad input
    from harness.study.elsewhere import FILE, measure_elsewhere  # as above
    from harness.study.model import session_of  # as above

    session, only = session_of(asked["run"]), [name for name in asked.get("only", "").split(",") if name]
    names = [name for cell in make_cells(session) for name in (cell.method, f"{cell.method}/{cell.sampler}")]
    for name in only:
        if name not in names:
            raise UserError(f"only={name}: is not in {session.folder}{nearest(name, names)}")
    data, rows = measure_elsewhere(session, node, only)
    for note in data.notes:
        print(note, file=sys.stderr, flush=True)
    if not rows:
        raise UserError(f"run={asked['run']}: nothing that was chosen has a bound; choose a method that has one")
    return f"{elsewhere_table(rows)}\nrows     {Path(session.folder) / FILE}"


if __name__ == "__main__":
    sys.exit(main())
