"""Score samples of any code base under a study's protocol: `python -m harness.score samples=their.jsonl study=few_step`.

python -m harness.score samples=[a.jsonl,b.jsonl] data=text data.path=books judge=gpt2-large
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import cli
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config.load import Loaded
    from harness.study.outcome import Outcome
    from harness.study.session import Session

_USAGE = f"""usage: python -m harness.score samples=FILE[,FILE] [arguments of harness.run] [options]

Scores files of samples beside held-out data with the metrics, the judge and the reference set of a study: table, report,
results.parquet and tracking as harness.run has them. A line is a sample: {{"text": ...}}, {{"ids": [...]}} or both (.jsonl),
or a text (.txt). Samples have scale.length tokens; how many there are is study.samples.

  samples=FILE          or samples=[FILE,FILE]: a row for each file, under the file's name
  bad=refuse|skip       a line that cannot be scored is named: stop, or go on without it
  long=refuse|cut       texts with too many tokens: the same, or cut them
  nfe=K                 or nfe=[K,K]: calls of a sample, for all files or for each; else what a name such as x-nfe0004 says
  study.name=scored     the folder of the results in runs_dir

options:
{cli.OPTIONS}
"""
_OWN = {"samples": None, "nfe": None, "bad": ("refuse", "skip"), "long": ("refuse", "cut")}


def main(words: list[str] | None = None) -> int:
    """Score; the exit code (see `cli.main`)."""
    return cli.main(_run, lambda folders: _USAGE, words)


def _run(given: cli.Arguments) -> Outcome | str:
    from harness.config.load import load_draft  # start-up time: not for --help
    from harness.study.runner import run_study  # as above: torch
    from harness.study.session import Session

    own, rest = _split(given.overrides)
    named = [] if any(word.startswith("study.name=") for word in rest) else ["study.name=scored"]
    draft = load_draft([*rest, "study.seeds=[0]", "study.temperatures=[1.0]", *named], given.folders)
    loaded = draft.loaded()
    rows, calls = _read(own, Session(loaded.tree))
    counts = {name: len(x_NL) for name, x_NL in rows.items()}
    n = min(counts.values())
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(f"samples: {each}; files are compared at the same number of samples: cut them to {n}")
    if any(word.startswith("study.samples=") for word in rest) and loaded.cfg.study.samples != n:
        raise UserError(f"study.samples={loaded.cfg.study.samples}: the files have {n} samples; use study.samples={n}")
    session = _session(draft.loaded([f"study.samples={n}", f"compute.sample_batch={n}"]), rows, calls)
    return run_study(session, given.command("harness.score"))


def _session(loaded: Loaded, rows: dict[str, Any], calls: dict[str, int]) -> Session:
    """The study with the files in the place of its methods."""
    from harness.study.given import as_rows  # start-up time: torch
    from harness.study.session import Session

    folder = Session(loaded.tree).folder
    changed = {"methods": as_rows(rows, calls, folder / "given"), "only": [], "redo": []}
    study = loaded.tree["study"] | {"nfe_of": {}, "nfe": [1]}
    return Session(loaded.tree | changed | {"study": study}, server=loaded.cfg.tracking.uri)


def _split(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The command's own keys, and the arguments of a study; raises `UserError`."""
    from harness.config.compose import parse  # start-up time: Hydra

    mine = [word for word in words if word.partition("=")[0] in _OWN]
    own: dict[str, Any] = {"bad": "refuse", "long": "refuse"}
    for o in parse(mine):
        key, value = o.key_or_group, o.value()
        choices = _OWN[key]
        if choices and value not in choices:
            raise UserError(f"{o.input_line}: is none of {', '.join(choices)}")
        own[key] = value
    files = own.get("samples")
    own["samples"] = [files] if isinstance(files, str) else files
    own["nfe"] = _calls(own.get("nfe"), len(own["samples"] or []))
    if not own["samples"] or not all(isinstance(file, str) and file for file in own["samples"]):
        raise UserError("samples= names no file; write samples=FILE or samples=[FILE,FILE]")
    return own, [word for word in words if word not in mine]


def _calls(given: Any, files: int) -> list[int | None]:
    """The NFE of each file as the arguments have it; raises `UserError`."""
    each = given if isinstance(given, list) else [given] * files
    if len(each) != files or not all(nfe is None or (type(nfe) is int and nfe > 0) for nfe in each):
        raise UserError(f"nfe={given}: give a whole number above 0, or a list of {files}, one for each file")
    return each


def _read(own: dict[str, Any], session: Session) -> tuple[dict[str, Any], dict[str, int]]:
    """Ids (N, L) and NFE (0: not known) of each file by the name of its row; says what was lost. Raises `UserError`."""
    from harness.study.given import read_lines  # start-up time: torch

    rows, calls = dict[str, Any](), dict[str, int]()
    for file, nfe in zip(own["samples"], own["nfe"], strict=True):
        path = Path(file).expanduser()
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-") or "samples"
        if name in rows:
            raise UserError(f"samples={file}: another file is called {name} too; rename one of them")
        lines = read_lines(path, session.data, cut=own["long"] == "cut")
        if lines.unfit and (own["bad"] == "refuse" or not len(lines.x_NL)):
            way_out = "mend them, or write bad=skip to go on without them" if len(lines.x_NL) else "nothing is left"
            raise UserError(f"{lines.told(path)}; {way_out}")
        for note in (*([lines.told(path)] if lines.unfit else []), *lines.notes):
            print(note, file=sys.stderr, flush=True)
        named = re.search(r"nfe0*(\d+)", path.stem)
        rows[name], calls[name] = lines.x_NL, nfe or (int(named[1]) if named else 0)
    return rows, calls


if __name__ == "__main__":
    sys.exit(main())
