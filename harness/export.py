"""Export a model that a study has trained: `python -m harness.export run=runs/few_step method=mdlm to=mdlm_folder`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from harness import cli
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.study.outcome import Outcome

_USAGE = """usage: python -m harness.export run=FOLDER method=NAME to=FOLDER [hub=OWNER/NAME] [KEY=VALUE ...]

Writes model.safetensors, config.json and the tokenizer: all that harness.load and harness.sample need, without study and data.

  run=FOLDER      of a study that has run
  method=NAME     a method of it that was trained
  to=FOLDER       what is written
  hub=OWNER/NAME  uploads it to that repository of the hub too, made if it is not there
  private=true    whether it is private, if it is made
  of=0            training seed; the study's first unless told
"""
_KEYS: dict[str, type] = {"run": str, "method": str, "to": str, "hub": str, "private": bool, "of": int}


def main(words: list[str] | None = None) -> int:
    """Export; the exit code (see `cli.main`)."""
    return cli.main(_run, lambda folders: _USAGE, words)


def _run(given: cli.Arguments) -> Outcome | str:
    asked = cli.keyed(given.overrides, _KEYS, ("run", "method", "to"))
    from harness.study.exported import push  # start-up time: torch, not for bad input
    from harness.study.model import Model, load

    model = load(asked["run"], asked["method"], asked.get("of"))
    if not isinstance(model, Model):
        raise UserError(f"run={asked['run']} is an exported model already; copy the folder")
    folder = model.export(asked["to"])
    there = [push(folder, asked["hub"], asked.get("private", True))] if "hub" in asked else []
    return "\n".join(f"model    {place}" for place in (str(folder), *there))


if __name__ == "__main__":
    sys.exit(main())
