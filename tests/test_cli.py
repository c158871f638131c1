"""The front that the commands share: what it makes of a command line, and of how a command ended."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import pytest

import harness.__main__ as overview
from harness import cli
from harness.errors import UserError
from harness.study.outcome import Outcome


def _main(run, words: list[str]) -> int:
    return cli.main(run, lambda folders: f"usage {folders}\n", words)


def test_options_and_overrides_are_told_apart():
    given = cli.split(["study=x", "--config-dir", "a", "--cfg", "job", "--config-dir", "b", "plan=true"])
    assert given.overrides == ["study=x", "plan=true"] and given.folders == [Path("a"), Path("b")]
    assert given.show_config and not given.show_help


@pytest.mark.parametrize("words", [["--config-dir"], ["--cfg"], ["--cfg", "hydra"], ["--plan"]])
def test_options_that_cannot_be_meant(words):
    with pytest.raises(UserError):
        cli.split(words)


def test_a_command_that_is_kept_has_no_login():
    given = cli.split(["tracking.uri=postgresql://me:geheim@host/db", "study=x"])
    assert given.command("harness.run") == "python -m harness.run tracking.uri=postgresql://***@host/db study=x"


def test_exit_codes_and_what_is_printed(capsys):
    def interrupted(given: cli.Arguments) -> str:
        raise KeyboardInterrupt

    def refused(given: cli.Arguments) -> str:
        raise UserError("x=1: is\nwrong")

    assert _main(lambda given: "text\n", ["x=1"]) == 0
    assert _main(lambda given: Outcome("table", ["place"]), ["x=1"]) == 0
    assert _main(interrupted, ["--help", "--config-dir", "a"]) == 0, "help asks the command nothing"
    assert capsys.readouterr().out == f"text\ntable\nplace\nusage {[Path('a')]}\n"
    assert _main(lambda given: Outcome("", [], {"mdlm": "it broke"}), ["x=1"]) == 1
    assert _main(refused, ["x=1"]) == 2
    assert _main(interrupted, ["x=1"]) == 130
    said = capsys.readouterr()
    assert said.out == "" and said.err == (
        "failed: mdlm: it broke\nerror: x=1: is wrong\nstopped; the same command continues where it was\n"
    )


def test_what_a_terminal_does_not_have_is_shown_in_plain_characters(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    table = "Gen. PPL \u2193 | 2.6 \u00b1 0.1 \u2192 \u2014 caf\u00e9 \u65e5"
    assert _main(lambda given: Outcome(table, ["place"]), ["study=x"]) == 0
    screen.flush()
    assert screen.buffer.getvalue() == b"Gen. PPL v | 2.6 +- 0.1 -> - caf? ?\nplace\n"


def test_what_is_said_of_a_failure_has_no_login(capsys):
    def refused(given: cli.Arguments) -> str:
        raise UserError("no answer from http://me:geheim@host/x; try again")

    assert _main(refused, ["study=x"]) == 2
    assert _main(lambda given: Outcome("", [], {"mdlm": "at postgresql://me:geheim@host/x"}), ["study=x"]) == 1
    said = capsys.readouterr().err
    assert "geheim" not in said and "error: no answer from http://***@host/x; try again" in said


def test_a_command_without_a_word_starts_nothing(capsys):
    def never(given: cli.Arguments) -> str:
        raise AssertionError("it was started")

    assert _main(never, []) == 0 and capsys.readouterr().out.startswith("usage")


def test_the_package_says_what_there_is_to_run(capsys):
    assert overview.main() == 0
    said = capsys.readouterr().out
    modules = [line.split()[2] for line in said.splitlines() if line.startswith("python -m")]
    own = {f"harness.{path.stem}" for path in Path(cli.__file__).parent.glob("*.py") if "cli.main(" in path.read_text()}
    assert set(modules) == own | {"harness.tracking.ui"} and all(importlib.util.find_spec(name) for name in modules)


def test_help_is_there_before_torch_is():
    words = "import sys; from harness import run, tune; run.main(['--help']), tune.main(['--help'])"
    said = subprocess.run(
        [sys.executable, "-c", f"{words}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines()[-1] == "False" and "mdlm" in said and "latent" in said


def test_a_reader_that_has_seen_enough_is_no_error():
    command = subprocess.Popen(
        [sys.executable, "-m", "harness.run", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()  # before anything is written: what `| head -0` does
    assert command.stderr.read() == b"" and command.wait() == 141
    command.stderr.close()
