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
#: Every choice with the first study; with the others, every third in turn of those that a study may have set keys of.
PAIRS = [
    (study, group, name)
    for at, study in enumerate(sorted(ENTRIES["study"]))
    for group, named in sorted(CHOICES.items())
    if group != "sampler"  # methods hold them
    for place, name in enumerate(sorted(named))
    if at == 0 or (group in ("data", "judge", "scale") and (at + place) % 3 == 0)
]


@pytest.mark.parametrize(("study", "group", "name"), PAIRS)
def test_every_study_composes_with_every_choice(study, group, name):
    if group == "study":
        choice = f"study={name}"
    elif group in PLACES:
        choice = f"+{PLACES[group]}={name}"
    else:
        choice = f"{group}={name}"
    more = ["data.path=somewhere"] if (group, name) in (("data", "text"), ("data", "brown")) else []
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


# ---- names, numbers and paths -----------------------------------------------------------------------------------------
_MDLM = "{_target_: baselines.mdlm.MDLM, samplers: {ancestral: {}}}"


@pytest.mark.parametrize(
    ("methods", "line"),
    [
        (f"data: {_MDLM}", "methods.data: is the name of the row of held-out data"),
        (f"../../x: {_MDLM}", "methods.../../x: is part of the names of files; use letters, digits"),
        (f"'': {_MDLM}", "methods.: is part of the names of files"),
        (f"'a b': {_MDLM}", "methods.a b: is part of the names of files"),
        (f"-x: {_MDLM}", "methods.-x: is part of the names of files"),
        (f"a/b: {_MDLM}", "methods.a/b: is part of the names of files"),
        (
            "a: {_target_: baselines.mdlm.MDLM, samplers: {../x: {sampler: ancestral}}}",
            "methods.a.samplers.../x: is part",
        ),
        (
            "a: {_target_: baselines.mdlm.MDLM, samplers: {b-c: {sampler: ancestral}}}\n  "
            "a-b: {_target_: baselines.mdlm.MDLM, samplers: {c: {sampler: ancestral}}}",
            "a-b/c and a/b-c would share their files; rename one of them",
        ),
    ],
)
def test_names_that_cannot_be_those_of_files_are_refused(tmp_path, methods, line):
    (tmp_path / "study").mkdir()
    text = f"# @package _global_\ndefaults: [smoke]\nstudy: {{name: mine}}\nmethods:\n  {methods}\n"
    (tmp_path / "study" / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(["study=mine"], [tmp_path])
    assert line in str(caught.value)


def test_metrics_have_names_of_files_too():
    with pytest.raises(UserError, match=r"metrics\.a b: is part of the names of files"):
        load(["++metrics={a b: {_target_: harness.metrics.entropy.Entropy}}"])


@pytest.mark.parametrize(
    "key", ["methods", "metrics", "compute", "train", "tracking", "study.seeds", "runs_dir", "study.nfe_of"]
)
def test_what_every_run_reads_cannot_be_taken_out(key):
    said = invoke([f"~{key}", "--cfg", "job"])
    assert said.code == 2 and said.err.startswith(f"error: ~{key}: is read by every run; give it a value")


@pytest.mark.parametrize("value", ["null", "[few_step,smoke]", "3"])
def test_a_group_is_chosen_by_a_name(value):
    said = invoke([f"study={value}", "--cfg", "job"])
    assert said.code == 2 and said.err.startswith("error: study=") and "no such study" in said.err


@pytest.mark.parametrize("key", ["study.seeds=[{}]", "study.sampling_seed={}", "judge.seed={}", "scale.steps={}"])
def test_whole_numbers_fit_into_64_bits(key):
    with pytest.raises(UserError, match=r"does not fit into 64 bits; the largest is 9223372036854775807$"):
        load(["study=smoke", key.format(2**63)])
    with pytest.raises(UserError, match="does not fit into 64 bits"):
        load(["study=smoke", key.format(10**400)])
    load(["study=smoke", key.format(2**63 - 1)])


PATHS = [
    ("runs_dir=~/out", "runs_dir"),
    ("cache_dir='~/out'", "cache_dir"),
    ("data.path=~/out", "data.path"),
    ("tokenizer.name=~/out", "tokenizer.name"),
    ("judge.model=~/out", "judge.model"),
    ("methods.fuji.encoder=~/out", "methods.fuji.encoder"),
]


@pytest.mark.parametrize(("argument", "key"), PATHS)
def test_a_path_below_the_home_folder_is_written_out_whatever_its_key(argument, key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    study = ["study=few_step", "data=text", "data.path=x", "judge=pretrained", "tokenizer=pretrained"]
    assert flatten(load([*study, argument]).tree)[key] == "/home/ann/out"


def test_folders_that_options_name_may_be_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_configs(tmp_path / "mine")
    (tmp_path / "best.yaml").write_text("overrides: [scale.depth=7]")
    said = invoke(["--config-dir", "~/mine", "study=toy", "+best=~/best.yaml", "--cfg", "job"])
    assert said.code == 0 and yaml.safe_load(said.out)["scale"]["depth"] == 7
