"""`+best=PATH`: the file's overrides in the place of the argument, between those of a task and those of the user."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.config.best import best_in, read_best
from harness.config.load import load, load_suite
from harness.errors import UserError
from tests.kit.study_kit import invoke


def _write(path: Path, overrides: object, **more: object) -> Path:
    path.write_text("# found\n" + yaml.safe_dump({"overrides": overrides, **more}), encoding="utf-8")
    return path


def test_a_study_runs_with_the_overrides_of_the_file(tmp_path):
    best = _write(tmp_path / "best.yaml", ["methods.seq.slots=3", "methods.seq.latent_dropout=0.25"], trial=7)
    found = load(["study=smoke", f"+best={best}"])
    told = load(["study=smoke", "methods.seq.slots=3", "methods.seq.latent_dropout=0.25"])
    assert found.tree == told.tree and found.tree["methods"]["seq"]["slots"] == 3
    assert load(["study=smoke", f"best={best}"]).tree == told.tree, "with or without '+'"


def test_what_the_user_says_wins_and_a_task_gives_way(tmp_path):
    best = _write(tmp_path / "best.yaml", ["methods.seq.slots=2", "methods.seq.dims=6", "study.temperatures=[0.8]"])
    arguments = ["study=exact", "only_tasks=[binsaw]", "methods.seq.dims=5", f"+best={best}"]
    suite = load_suite(arguments)
    tree = suite.parts["binsaw"].tree
    assert tree["methods"]["seq"]["slots"] == 2, "the task says 4"
    assert tree["methods"]["seq"]["dims"] == 5, "the command line says 5, before the file is named"
    assert tree["methods"]["fuji"]["slots"] == 4, "and the rest is the task's"
    assert tree["study"]["temperatures"] == [0.8] and tree["study"]["name"] == "exact/binsaw"


def test_a_choice_of_a_group_that_both_make_is_the_users(tmp_path):
    best = _write(tmp_path / "best.yaml", ["scale=small", "scale.depth=3"])
    assert load(["study=smoke", f"+best={best}"]).tree["scale"]["depth"] == 3
    tree = load(["study=smoke", "scale=nano", f"+best={best}"]).tree
    assert tree["scale"]["width"] == load(["study=smoke", "scale=nano"]).tree["scale"]["width"]


def test_an_error_about_a_key_of_the_file_names_the_file(tmp_path):
    best = _write(tmp_path / "best.yaml", ["methods.seq.slotz=3"])
    with pytest.raises(UserError, match=r"slotz.*did you mean 'methods.seq.slots'.*\(set by \+best=.*best.yaml\)"):
        load(["study=smoke", f"+best={best}"])
    with pytest.raises(UserError) as error:
        load(["study=smoke", "methods.mdlm.nonsense=1", f"+best={_write(best, ['methods.seq.slots=3'])}"])
    assert "best.yaml" not in str(error.value), "not where the file is not at fault"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "no such file"),
        ("a: [", "is not YAML"),
        ("- a", "has no list 'overrides'"),
        ("overrides: {a: 1}", "has no list 'overrides'"),
        ("overrides: [a=1, 3]", "has no list 'overrides'"),
        ("overrides: [study=exact]", "study=exact is not for this file"),
        ("overrides: [+best=other.yaml]", r"\+best=other.yaml is not for this file"),
        ("overrides: [tracking.uri=http://elsewhere]", "is not for this file"),
        ("overrides: ['/study=exact']", "is not for this file"),
        ("overrides: ['slurm.setup=[rm -r x]']", "is not for this file"),
        ("overrides: ['tune.base=[a=1]']", "is not for this file"),
        ("overrides: ['scale.depth=${oc.env:SECRET}']", "is not for this file"),
        ("overrides: ['methods.mdlm._target_=evil.Method']", "is not for this file"),
        ("overrides: ['+methods.x={_target_: evil.Method}']", "is not for this file"),
        ("overrides: ['methods.mdlm.samplers.x={_target_: evil.Method}']", "is not for this file"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, text, why):
    path = tmp_path / "best.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=why):
        read_best(path)
    said = invoke(["study=smoke", f"+best={path}", "--cfg", "job"])
    assert said.code == 2 and said.err.count("\n") == 1 and said.err.startswith(f"error: +best={path}")


def test_a_folder_is_refused_with_the_file_in_it(tmp_path):
    _write(tmp_path / "best.yaml", [])
    with pytest.raises(UserError, match=f"did you mean '{tmp_path}/best.yaml'"):
        read_best(tmp_path)


def test_two_files_are_refused_and_none_changes_nothing(tmp_path):
    with pytest.raises(UserError, match="was given before it"), best_in(["+best=a", "+best=b"]):
        pass
    with best_in(["study=smoke", "only=[seq]"]) as arguments:
        assert arguments == ["study=smoke", "only=[seq]"]


def test_help_names_it():
    assert "+best=PATH" in invoke(["--help"]).out


def test_nothing_that_the_file_names_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for override in (
        "methods.mdlm._target_=evil.Method",
        "+methods.x={_target_: evil.Method}",
        "data._target_=evil.Data",
    ):
        best = _write(tmp_path / "best.yaml", [override])
        assert invoke(["study=smoke", f"+best={best}", "plan=true"]).code == 2
    assert not (tmp_path / "ran").exists()
