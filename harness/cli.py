"""The front that the commands share: arguments, exit codes, errors in one line, and how an outcome is printed."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import EXIT_CODE, UserError, nearest
from harness.jobs.signals import Stopped, stoppable
from harness.tracking.uri import redact, without_logins

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
        return " ".join(["python -m", module, *map(redact, self.words)])


def main(
    run: Callable[[Arguments], Outcome | str], usage: Callable[[list[Path]], str], words: Sequence[str] | None = None
) -> int:
    """Run a command: `run` returns how it ended, or a text to print; `usage` is the text of --help with these folders.

    Without a word it starts nothing, and prints that text.

    Exit codes: 0 done, 1 something failed, 2 bad input (one line on standard error); 130, 143 and 129 for Ctrl-C, SIGTERM
    and SIGHUP; 141 where nobody reads what is printed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # What a worker that is killed leaves behind, the tracker of its resources takes away: nothing to warn of.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors=_PLAIN)
    try:
        with stoppable():
            given = split(sys.argv[1:] if words is None else words)
            given.show_help |= not given.words
            code = _show(_help(given, usage) if given.show_help else run(given))
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader, as `head` does, has seen enough; Python would try to flush again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        _say(f"error: {' '.join(str(error).split())}")
        return EXIT_CODE
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # the terminal may be gone
            _say("stopped; the same command continues where it was")
        return stop.code if isinstance(stop, Stopped) else 130


def _say(line: str) -> None:
    """A line on standard error; what it quotes of the command or of somebody else's error may hold a login."""
    print(without_logins(line), file=sys.stderr, flush=True)


_PLAIN = "harness.plain"
_INSTEAD = {"↓": "v", "↑": "^", "▲": "^", "†": "*", "→": "->", "±": "+-", "—": "-", "–": "-", "…": "...", "×": "x"}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What a terminal shows in the place of characters that it does not have."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_INSTEAD.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error(_PLAIN, _plainly)


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
            if not folder:
                raise UserError(f"{word} needs a value, for example {word} DIR")
            given.folders.append(Path(folder).expanduser())
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


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def keyed(words: Sequence[str], kinds: Mapping[str, type], needed: Sequence[str]) -> dict[str, Any]:
    """Arguments `key=value` by key, each of its kind; raises `UserError`, also where one of `needed` is missing."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in kinds or not value:
            raise UserError(f"{word}: write KEY=VALUE{nearest(key, kinds)}")
        try:
            found[key] = {"true": True, "false": False}[value] if kinds[key] is bool else kinds[key](value)
        except (ValueError, KeyError) as error:
            raise UserError(f"{word}: is not {_KINDS[kinds[key]]}") from error
    missing = [key for key in needed if key not in found]
    if missing:
        raise UserError(f"{missing[0]}= is missing; --help shows the arguments")
    return found


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
        _say(f"failed: {name}: {reason}")
    return 1 if answer.failures else 0
