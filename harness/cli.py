"""The front that the commands share: arguments, exit codes, errors in one line, and how an outcome is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import EXIT_CODE, UserError

if TYPE_CHECKING:
    from harness.study.outcome import Outcome

#: What every usage text says of the options.
OPTIONS = """\
  --help              this text
  --help WORD ...     every key of a section or a choice, with default and range: --help scale train method=seq
  --config-dir DIR    a folder of your own with study/, method/, ... beside those of the package"""


@dataclass
class Arguments:
    """A command line: `words` as they were typed, `overrides` are those that are no option, `folders` those of --config-dir."""

    words: list[str]
    overrides: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    show_help: bool = False
    show_config: bool = False

    def command(self, module: str) -> str:
        """The command as it may be printed and kept: without a login."""
        from harness.tracking.uri import redact  # start-up time: not for --help

        return " ".join(["python -m", module, *map(redact, self.words)])


def main(
    run: Callable[[Arguments], Outcome | str], usage: Callable[[list[Path]], str], words: Sequence[str] | None = None
) -> int:
    """Run a command: `run` returns how it ended, or a text to print; `usage` is the text of --help with these folders.

    Without a word it starts nothing, and prints that text.

    Exit codes: 0 done, 1 something failed, 2 bad input (one line on standard error), 130 interrupted.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        given = split(sys.argv[1:] if words is None else words)
        given.show_help |= not given.words
        return _show(_help(given, usage) if given.show_help else run(given))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130


def split(words: Sequence[str]) -> Arguments:
    """Options and overrides of a command line told apart; raises `UserError`."""
    given = Arguments(list(words))
    rest = iter(words)
    for word in rest:
        if word in ("--help", "-h"):
            given.show_help = True
        elif word in ("--cfg", "-c"):
            _need_job(word, next(rest, None))
            given.show_config = True
        elif word == "--config-dir":
            folder = next(rest, None)
            if folder is None:
                raise UserError(f"{word} needs a value, for example {word} DIR")
            given.folders.append(Path(folder))
        elif word.startswith("--"):
            raise UserError(f"unknown option '{word}'; options are --help, --cfg job and --config-dir DIR")
        else:
            given.overrides.append(word)
    return given


def _need_job(word: str, value: str | None) -> None:
    if value is None:
        raise UserError(f"{word} needs a value, for example {word} job")
    if value != "job":
        raise UserError(f"--cfg {value}: only 'job' can be shown; write --cfg job")


def _help(given: Arguments, usage: Callable[[list[Path]], str]) -> str:
    if not given.overrides:
        return usage(given.folders)
    from harness.config.help import keys_text  # start-up time: Hydra and the methods

    return keys_text(given.overrides, given.folders)


def as_yaml(trees: Sequence[dict[str, Any]]) -> str:
    """Configurations as text, a document each."""
    import yaml  # start-up time: only for --cfg job

    return yaml.safe_dump_all(trees, sort_keys=False)


def _show(answer: Outcome | str) -> int:
    """Print an answer; the exit code."""
    if isinstance(answer, str):
        print(answer.rstrip("\n"))
        return 0
    for line in (answer.table, *answer.places):
        if line:
            print(line)
    for name, reason in answer.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if answer.failures else 0
