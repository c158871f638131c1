"""README and the pages: what they show is generated, what they link to is there, and their commands can be run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from harness.config.load import load, load_suite
from harness.config.registry import find_entries, studies_folder

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def test_both_tables_show_what_the_results_say():
    spec = importlib.util.spec_from_file_location("front", ROOT / "docs" / "front.py")
    front = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(front)
    text = (ROOT / "README.md").read_text()
    assert front.front() in text and front.rivals() in text, "run python docs/front.py"
    assert front.put(text, front.rivals()) == text and len(front.rivals().splitlines()) <= 2 + 2 + 12, "12 rows at most"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL))
    lost = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not lost


def _commands() -> list[str]:
    """All commands of the harness in blocks of shell, without comments."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            joined = block.replace("\\\n", " ")
            found += [line.partition("  #")[0].strip() for line in joined.splitlines() if "python -m harness" in line]
    return sorted(set(found))


def test_every_command_can_be_run():
    """Each composes as it stands, or names modules and searches that exist: a misspelt key or choice is refused."""
    searches = set(find_entries([studies_folder()])["tune"])
    commands = _commands()
    assert len(commands) > 20
    for command in commands:
        words = shlex.split(command[command.index("python -m") :], comments=True)
        assert importlib.util.find_spec(words[2]), command
        assert {word.partition("=")[2] for word in words if word.startswith("tune=")} <= searches | {"mine"}, command
        own = any(word.startswith(("+best=", "--", "methods.mine")) or "=mine" in word for word in words)
        if words[2] == "harness.run" and not own:
            arguments = [word for word in words[3:] if "(" not in word]
            assert load_suite(arguments, []) or load(arguments, []), command


def test_brackets_are_quoted_for_every_shell():
    """zsh takes `a=[x]` for a pattern of file names, and stops."""
    loose = [c for c in _commands() if re.search(r"\[", re.sub(r"'[^']*'|\"[^\"]*\"", "", c))]
    assert not loose
