"""The examples of CONTRIBUTING.md, as a newcomer has them: written into a folder, run in a study, and put to the contracts."""

import re
import shlex
from pathlib import Path

import pytest

from harness import check
from harness.config.load import load
from harness.config.registry import Entry, find_entries
from harness.store import ResultsTable
from tests.kit.study_kit import invoke, use_threads
from tests.kit.study_plugins import write_configs

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```", TEXT, re.S | re.M))
COMMANDS = [line for line in TEXT.splitlines() if line.startswith("python -m harness.run ")]
CHECKS = [line for line in TEXT.splitlines() if line.startswith("python -m harness.check ")]


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """The reader's folder, which is where he is."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def entries(mine) -> dict[str, dict[str, Entry]]:
    return find_entries([mine])


def test_there_is_a_class_and_a_yaml_of_each(entries):
    assert {group: len(named) for group, named in entries.items()} == {"method": 1, "sampler": 1, "metric": 1}
    assert len(FILES) == 6 and len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(mine, line):
    words = shlex.split(line)[3:]
    assert words[:2] == ["--config-dir", "."]
    if "--help" in words:
        assert invoke(words).code == 0
    else:
        load(words[2:], [mine])


def test_a_study_with_all_three(mine, monkeypatch, tmp_path):
    use_threads(monkeypatch)
    configs = tmp_path / "toy"
    said = invoke(
        [
            *write_configs(configs), "--config-dir", ".", f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}",
            "+method@methods.local=local", "+method@methods.mdlm=mdlm", "only=[mdlm,local]",
            "methods.mdlm.samplers.blocks={}", "methods.mdlm.samplers.back={sampler: blocks, backwards: true}",
            "+metric@metrics.distinct=distinct", "study.nfe=[2]", "scale.steps=6", "train.validations=1",
        ]
    )  # fmt: skip
    assert said.code == 0, said.err
    frame = ResultsTable.read(tmp_path / "runs" / "toy" / "results.parquet")
    rows = {("local", "ancestral"), ("mdlm", "ancestral"), ("mdlm", "blocks"), ("mdlm", "back")}
    assert set(zip(frame["method"], frame["sampler"], strict=True)) == {("data", ""), *rows}
    assert frame["distinct"].between(0, 1).all() and "MDLM, blocks" in said.out
    assert len(list((tmp_path / "runs" / "toy" / "weights").iterdir())) == 2


def test_all_three_meet_their_contract(mine, capsys):
    assert len(CHECKS) == 1
    assert check.main(shlex.split(CHECKS[0])[3:]) == 0
    said = capsys.readouterr().out
    assert said.count("passed") == 26 and "FAILED" not in said
