"""Draw from a model that a study has trained: `python -m harness.sample run=runs/few_step method=mdlm n=8 nfe=4`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import cli
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.study.outcome import Outcome

_USAGE = """usage: python -m harness.sample run=FOLDER [method=NAME] nfe=K [KEY=VALUE ...]

Prints samples as lines of JSON with text and ids, as harness.score reads them.

  run=FOLDER      of a study that has run, such as runs/few_step or runs/exact/binsaw, or of an exported model
  method=NAME     or NAME/SAMPLER; of an exported model a sampler, or nothing
  nfe=K           network calls of a sample
  n=8             samples
  seed=S          of the draw; without it the study's own
  temperature=1   that divides logits
  of=0            training seed; the study's first unless told
  to=FILE         a file instead of the terminal
"""
_KEYS: dict[str, type] = {
    "run": str, "method": str, "nfe": int, "n": int, "seed": int, "temperature": float, "of": int, "to": str,
}  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Draw; the exit code (see `cli.main`)."""
    return cli.main(_run, lambda folders: _USAGE, words)


def _run(given: cli.Arguments) -> Outcome | str:
    asked = cli.keyed(given.overrides, _KEYS, ("run", "nfe"))
    if not 0 < asked.get("temperature", 1.0) < float("inf"):
        raise UserError(f"temperature={asked['temperature']}: must be above 0; 1 is usual")
    from harness.study.model import load  # start-up time: torch, not for bad input

    model = load(asked["run"], asked.get("method", ""), asked.get("of"))
    drawn_NL = model.draw_ids(asked.get("n", 8), asked["nfe"], asked.get("seed"), asked.get("temperature", 1.0))
    rows, decode = drawn_NL.tolist(), model.decode
    text = "".join(json.dumps({"text": decode(row), "ids": row}, ensure_ascii=False) + "\n" for row in rows)
    if "to" not in asked:
        return text
    from harness.store import write_text  # start-up time, as above

    write_text(Path(asked["to"]).expanduser(), text)
    return f"samples  {asked['to']}"


if __name__ == "__main__":
    sys.exit(main())
