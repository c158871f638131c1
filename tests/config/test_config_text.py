"""Files and arguments whose text stays as it was typed, typed sections of other commands, and help on single keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.help import comments_of
from harness.config.load import load, load_draft, load_suite
from harness.config.registry import OWN_GROUPS
from harness.config.schema import ScaleConfig
from harness.errors import UserError
from tests.kit.study_kit import invoke

_STUDY = "# @package _global_\n# About it\ndefaults:\n  - smoke\n"
_TYPED = ["2024_01", "1e5", "1.10", "true", "007", "2024-01-01"]


def _study(root: Path, text: str, name: str = "mine") -> list[Path]:
    path = root / "study" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [root]


# ---- text -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", _TYPED)
def test_text_stays_as_it_was_typed(text, tmp_path):
    assert load(["study=smoke", f"study.name={text}"]).cfg.study.name == text
    folders = _study(tmp_path, f"{_STUDY}study:\n  name: {text}\n")
    assert load(["study=mine"], folders).tree["study"]["name"] == text


def test_what_is_no_text_keeps_its_type(tmp_path):
    tree = load(["study=smoke", "study.name=x", "scale.lr=1e-5", "plan=true", "tracking.uri=null"]).tree
    assert tree["scale"]["lr"] == 1e-5 and tree["plan"] is True and tree["tracking"]["uri"] is None
    folders = _study(tmp_path, f"{_STUDY}study: {{name: mine, samples: 32}}\nscale: {{lr: 1.0e-5}}\n")
    tree = load(["study=mine"], folders).tree
    assert tree["study"]["samples"] == 32 and tree["scale"]["lr"] == 1e-5


def test_lists_of_text_and_a_draft(tmp_path):
    draft = load_draft(["study=smoke"])
    assert draft.loaded(["study.name=1e5"]).cfg.study.name == "1e5"
    cfg = load(["study=smoke", "slurm.setup=[1e5,a b]", "slurm.more.reservation=1.10"], sections=("slurm",)).cfg
    assert cfg.slurm.setup == ["1e5", "a b"] and cfg.slurm.more == {"reservation": "1.10"}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("study:\n  name: mine\n  samples: 32\n  name: other\n", 8, "name"),
        ("study: {name: mine}\nscale: {depth: 2}\nstudy: {nfe: [2]}\n", 7, "study"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text, line, key, tmp_path):
    with pytest.raises(UserError) as caught:
        load(["study=mine"], _study(tmp_path, _STUDY + text))
    said = str(caught.value)
    assert "mine.yaml" in said and f"line {line}: '{key}'" in said and "\n" not in said


def test_merged_keys_may_be_set_again(tmp_path):
    text = "methods:\n  fuji: &a {slots: 2, dims: 4}\n  seq: {<<: *a, slots: 4}\nstudy: {name: mine}\n"
    methods = load(["study=mine"], _study(tmp_path, _STUDY + text)).tree["methods"]
    assert (methods["fuji"]["slots"], methods["seq"]["slots"], methods["seq"]["dims"]) == (2, 4, 4)


def test_a_byte_order_mark_is_read(tmp_path):
    assert load(["study=mine"], _study(tmp_path, f"\ufeff{_STUDY}study: {{name: mine}}\n")).cfg.study.name == "mine"


# ---- sections of other commands ---------------------------------------------------------------------------------------
def test_other_commands_sections_are_theirs():
    for argument in ("tune.trials=3", "tune=latent", "slurm.jobs=2", "wait=false", "+tune.x=1"):
        with pytest.raises(
            UserError, match=f"it belongs to {OWN_GROUPS[argument.lstrip('+').split('.')[0].split('=')[0]]}"
        ):
            load(["study=smoke", argument])


def test_sections_are_typed_and_no_part_of_what_is_measured():
    plain = load(["study=smoke"])
    loaded = load(
        ["study=smoke", "tune=latent", "tune.trials=3", "slurm.jobs=2", "wait=false"], None, tuple(OWN_GROUPS)
    )
    assert loaded.tree == plain.tree and not set(OWN_GROUPS) & set(plain.tree)
    cfg = loaded.cfg
    assert (cfg.tune.name, cfg.tune.trials, cfg.slurm.jobs, cfg.wait) == ("latent", 3, 2, False)
    draft = load_draft(["study=exact", "only_tasks=[binsaw]", "tune=latent", "tune.trials=3"], sections=("tune",))
    assert draft.loaded(["scale.steps=7"]).cfg.tune.trials == 3
    suite = load_suite(["study=exact", "only_tasks=[binsaw]", "slurm.jobs=4"], sections=("slurm",))
    assert suite.parts["binsaw"].cfg.slurm.jobs == 4 and "slurm" not in suite.parts["binsaw"].tree


def test_parts_of_a_search_have_names_of_their_own():
    more = ["tune.space.slots.high=8", "~tune.space.dims", "tune.constraints.q.max=3", "tune.objectives.o={nfe: 2}"]
    tune = load(["study=smoke", "tune=latent", *more], sections=("tune",)).cfg.tune
    assert tune.space["{method}.slots"].high == 8 and "{method}.dims" not in tune.space
    assert tune.constraints["q"].max == 3 and tune.objectives["o"].nfe == 2
    whole = load(["study=smoke", "tune=latent", "tune.space.slots={low: 2, high: 3}"], sections=("tune",)).cfg.tune
    assert whole.space["{method}.slots"].log is False


REFUSED = [
    (["tune=latnt"], "tune=latnt: no such tune; did you mean 'latent'?"),
    ([], "tune= is missing"),
    (["tune=latent", "tune.trialz=8"], "unknown key 'tune.trialz'; did you mean 'tune.trials'?"),
    (["tune=latent", "tune.space.slotz.high=8"], "did you mean 'slots'?"),
    (["tune=latent", "~tune.space.slotz"], "nothing of this name to take out; did you mean 'slots'?"),
    (["tune=latent", "tune.space.slots.hi=8"], "tune.space.slots.hi=8: "),
    (["tune=latent", "tune.trials=x"], "could not be converted to Integer"),
    (["tune=latent", "slurm.jobs=0"], "slurm.jobs=0: must be 1 or more; the nearest is 1"),
    (["tune=latent", "slurm.timeout_min=0"], "slurm.timeout_min=0.0: must be above 0 minutes"),
    (["tune=latent", "slurm.timeout_min=1"], "slurm.signal_delay_s=90: must be below the 60 seconds"),
    (["tune=latent", "slurm.job=2"], "unknown key 'slurm.job'; did you mean 'slurm.jobs'?"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=str)
def test_bad_values_of_sections_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        load(["study=smoke", *arguments], sections=tuple(OWN_GROUPS))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["tune.storage", "tracking.uri"])
def test_a_url_is_taken_as_it_is(key):
    url = "postgresql://me:p@'x?y&z=%41 (,]@host/db"
    cfg = load(["study=smoke", "tune=latent", f"{key}={url}"], sections=("tune",)).cfg
    assert (cfg.tune.storage if key == "tune.storage" else cfg.tracking.uri) == url


def test_a_file_of_a_search_with_an_unknown_key_is_named(tmp_path):
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "mine.yaml").write_text("trialz: 3\n")
    with pytest.raises(UserError, match=r"mine.yaml: .*did you mean 'trials'"):
        load(["study=smoke"], [tmp_path])


# ---- help -------------------------------------------------------------------------------------------------------------
def test_help_on_sections_and_choices_lists_every_key():
    said = invoke(["--help", "scale", "method=seq", "judge=tiny", "tune", "slurm", "run", "metric"])
    assert said.code == 0 and said.err == ""
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.startswith("  ")}
    assert "1 or more" in lines["scale.width"] and "a multiple of 2 x heads" in lines["scale.width"]
    assert "one of 'tokens', 'flops'" in lines["scale.match"]
    assert "between 1 and 4096" in lines["methods.NAME.slots"] and lines["methods.NAME.schedule"].split()[1] == "linear"
    assert {"slurm.jobs", "tune.trials", "tune.confirm.top", "runs_dir", "judge.width", "mauve"} <= set(lines)
    assert "it belongs to" not in said.out


def test_help_on_what_is_not_there_names_the_nearest():
    for word, near in (("scal", "'scale'"), ("method=sec", "'seq'"), ("mthod=seq", "'method=seq'")):
        said = invoke(["--help", word])
        assert said.code == 2 and word in said.error and near in said.error


def test_comments_are_those_beside_the_fields():
    comments = comments_of(ScaleConfig)
    assert comments["lr"] == "the peak" and set(comments) == set(ScaleConfig.__dataclass_fields__)
