"""Configuration: every file composes with every other, what is shown can be run again, and help names everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.config.compose import flatten, leaves
from harness.config.load import load
from harness.config.registry import OWN_GROUPS, build_options, find_entries, studies_folder
from harness.errors import UserError
from harness.study.session import Session
from tests.kit.study_kit import command, invoke
from tests.kit.study_plugins import YAML, write_configs

ENTRIES = find_entries([studies_folder()])
#: Where the value that a group chooses ends up.
PLACES = {"method": "method@methods.x", "metric": "metric@metrics.x"}


def test_every_file_of_the_package_is_found():
    files = {(path.parent.name, path.stem) for path in studies_folder().glob("*/*.yaml")}
    assert {(group, name) for group, named in ENTRIES.items() for name in named} == files
    assert set(ENTRIES) == {"study", "scale", "data", "tokenizer", "judge", "method", "metric", "sampler", "tune"}
    assert all(entry.about for named in ENTRIES.values() for entry in named.values())


#: What `harness.run` chooses from; the search spaces are `harness.tune`'s.
CHOICES = {group: named for group, named in ENTRIES.items() if group not in OWN_GROUPS}
#: Every choice with the first study; with the others, those that a study may have set keys of.
PAIRS = [
    (study, group, name)
    for study in sorted(ENTRIES["study"])
    for group, named in sorted(CHOICES.items())
    if group != "sampler"  # methods hold them
    for name in sorted(named)
    if study == sorted(ENTRIES["study"])[0] or group in ("judge", "scale", "data")
]


@pytest.mark.parametrize(("study", "group", "name"), PAIRS)
def test_every_study_composes_with_every_choice(study, group, name):
    if group == "study":
        choice = f"study={name}"
    elif group in PLACES:
        choice = f"+{PLACES[group]}={name}"
    else:
        choice = f"{group}={name}"
    more = ["data.path=somewhere"] if (group, name) == ("data", "text") else []
    loaded = load([f"study={study}", choice, *more])
    node = {"method": loaded.tree["methods"], "metric": loaded.tree["metrics"]}.get(group)
    node = node["x"] if node is not None else loaded.tree.get(group)
    if group not in ("study", "scale"):
        cls, options = build_options(node)
        assert isinstance(options, cls.Options)
        assert node["_target_"] == ENTRIES[group][name].content["_target_"]


def test_choices_of_the_command_line_win_over_the_study():
    tree = load(["study=smoke", "scale=small", "scale.depth=3", "study.nfe=[3,5]"]).tree
    assert tree["scale"]["depth"] == 3 and tree["study"]["nfe"] == [3, 5]
    wide = load(["+method@methods.wide=mdlm", "methods.wide.width_factor=1.5"]).tree["methods"]
    assert wide["wide"]["width_factor"] == 1.5 and wide["mdlm"]["width_factor"] == 1.0
    assert "seq" not in load(["~methods.seq"]).tree["methods"]


def test_numbers_have_the_types_that_the_classes_declare():
    cfg = load(["study=smoke", "scale.lr=1", "study.temperatures=[1]"]).cfg
    assert isinstance(cfg.scale.lr, float) and isinstance(cfg.study.temperatures[0], float)
    assert isinstance(cfg.scale.width, int) and cfg.tracking.uri is None


def test_flatten_and_leaves():
    tree = {"a": {"b": 1, "c": {}}, "d": [1, 2]}
    assert flatten(tree) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
    assert leaves(tree) == ["a", "a.b", "a.c", "d"]


def test_shown_configuration_is_the_one_that_runs(tmp_path):
    arguments = command(tmp_path / "text.txt", tmp_path / "runs", tmp_path / "cache", "study.seeds=[0,3]")
    said = invoke([*arguments, "--cfg", "job"])
    assert said.code == 0 and said.err == ""
    shown = yaml.safe_load(said.out)
    assert shown == load(arguments).tree
    assert Session(shown).cfg == Session(load(arguments).tree).cfg
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


def test_shown_configuration_can_be_a_study_file(tmp_path):
    """What `--cfg job` prints, put into a file of one's own, composes to the same tree."""
    arguments = command(tmp_path / "text.txt", tmp_path / "runs", tmp_path / "cache")
    tree = load(arguments).tree
    (tmp_path / "mine" / "study").mkdir(parents=True)
    text = invoke([*arguments, "--cfg", "job"]).out
    (tmp_path / "mine" / "study" / "again.yaml").write_text("# @package _global_\n" + text)
    assert load(["study=again"], [tmp_path / "mine"]).tree == tree


def test_help_lists_every_group_and_choice(tmp_path):
    said = invoke([*write_configs(tmp_path / "mine")[:2], "--help"])
    assert said.code == 0
    own = {tuple(name.split("/")) for name in YAML}
    ours = {(group, name) for group, named in CHOICES.items() for name in named}
    lines = said.out.splitlines()
    for group, name in own | ours:
        begin = lines.index(f"  {group}")
        end = next((i for i in range(begin + 1, len(lines)) if not lines[i].startswith("    ")), len(lines))
        assert any(line.split()[0] == name for line in lines[begin + 1 : end]), (group, name)
    assert "A law for each position" in said.out


def test_own_entry_replaces_one_of_the_package(tmp_path):
    folder = tmp_path / "mine" / "method"
    folder.mkdir(parents=True)
    (folder / "mdlm.yaml").write_text("_target_: baselines.mdlm.MDLM\nwidth_factor: 2.0\nsamplers: {ancestral: {}}\n")
    assert load([], [tmp_path / "mine"]).tree["methods"]["mdlm"]["width_factor"] == 2.0
    assert load([]).tree["methods"]["mdlm"]["width_factor"] == 1.0


def test_a_value_that_reads_another_key(tmp_path):
    tree = load(["scale.length=48", "judge.context=${scale.length}"]).tree
    assert tree["judge"]["context"] == 48
    with pytest.raises(UserError, match="scale.lenght"):
        load(["judge.context=${scale.lenght}"])


def test_study_folder_comes_with_the_package():
    assert studies_folder() == Path(__file__).parents[2] / "studies"
