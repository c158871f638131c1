"""A search's configuration: what it becomes in a study, and one clear line for whatever cannot be meant."""

from __future__ import annotations

import math
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import yaml

from harness.config.load import load, load_draft
from harness.config.registry import find_entries, studies_folder
from harness.errors import UserError
from harness.search.load import load_tune
from harness.search.loaded import LoadedTune
from tests.kit.study_kit import invoke
from tests.kit.tune_toys import arguments, write_files

TUNED = "methods.tunable.samplers.tuned"
_STUDIES = {
    "latent": ["few_step", "exact"],
    "schedule": ["few_step", "paths"],
    "recipe": ["few_step", "exact"],
    "codes": ["few_step", "digits"],
    "embedded": ["few_step"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tune")
    write_files(made)
    return made


def _load(root: Path, *more: str, tune: str = "toy", check: bool = True) -> LoadedTune:
    return load_tune(arguments(root, f"tune={tune}", *more), [root / "configs"], check)


def _with(root: Path, name: str, changes: dict) -> str:
    """A search that differs from `toy` in some of its sections."""
    content = yaml.safe_load((root / "configs" / "tune" / "toy.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(content.get(key), dict) else value
    (root / "configs" / "tune" / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return name


# ---- what it becomes --------------------------------------------------------------------------------------------------
def test_a_search_is_complete_when_it_is_loaded(root):
    loaded = _load(root)
    cfg = loaded.cfg
    assert cfg.method == "tunable/tuned" and cfg.row == ("tunable", "tuned") and cfg.name == "toy"
    sampling = [f"samplers.tuned.{k}" for k in ("path", "bend", "corners")]
    assert list(cfg.space) == [f"methods.tunable.{k}" for k in ("spread", "rounds", *sampling)]
    kinds = [d.kind for d in cfg.space.values()]
    assert kinds == ["float", "int", "categorical", "float", "categorical"]
    assert cfg.space["methods.tunable.samplers.tuned.bend"].when == {"methods.tunable.samplers.tuned.path": ["bent"]}
    assert (cfg.objectives["quality"].column, cfg.objectives["quality"].direction) == ("gen_ppl", "minimize")
    assert list(cfg.constraints) == ["repeats"], "an optional constraint on a column that there is not"
    assert cfg.budgets == [2, 4] and loaded.directions == ["minimize"]
    assert loaded.folder == root / "runs" / "tunable" / "tune" / "toy"
    assert loaded.context.weights == root / "runs" / "tunable" / "weights"
    assert "storage" not in loaded.tree and not loaded.samples_only
    assert _load(root, tune="heat", check=False).samples_only


def test_trials_differ_from_the_study_and_the_command_line_wins(root):
    loaded = _load(root, "tune.steps=0.5", "tune.samples=24")
    tree = loaded.trial_tree(["methods.tunable.spread=3"], "trials/x")
    assert tree["scale"]["steps"] == 15 and loaded.base.cfg.scale.steps == 30
    assert tree["methods"]["tunable"]["spread"] == 3.0
    study = tree["study"]
    assert (study["name"], study["samples"], study["seeds"]) == ("tunable/tune/toy/trials/x", 24, [0])
    assert study["nfe"] == [2, 4] and study["temperatures"] == [1.0] and tree["only"] == ["tunable/tuned"]
    assert loaded.draft.loaded(["methods.tunable.spread=3"]).cfg.study.samples == 16
    other = _load(root, "train.validations=2", "tune.base=['train.validations=5','methods.tunable.rounds=4']")
    tree = other.trial_tree([], "x")
    assert tree["train"]["validations"] == 2 and tree["methods"]["tunable"]["rounds"] == 4


def test_a_draft_gives_what_loading_gives(root):
    folders, base = [root / "configs"], arguments(root)
    more = ["methods.tunable.spread=0.25", "study.temperatures=[0.5]", "methods.tunable.samplers.tuned.corners=[1,0.5]"]
    draft = load_draft(base, folders)
    ours, theirs = draft.loaded(more), load([*base, *more], folders)
    assert ours.tree == theirs.tree and ours.cfg == theirs.cfg and ours.overrides == theirs.overrides
    assert ours.tree["methods"]["twin"]["spread"] == 0.25, "a value that refers to the changed one follows it"
    for wrong in ("methods.tunable.spred=1", "methods.tunable.rounds=1.5", "scale.width=7", "+methods.tunable.x=1"):
        with pytest.raises(UserError):
            draft.loaded([wrong])


def test_a_key_that_refers_to_another_is_searched_by_itself(root):
    loaded = _load(root, "tune.method=twin")
    assert next(iter(loaded.cfg.space)) == "methods.twin.spread"
    methods = loaded.job({"methods.twin.spread": 4.0})["methods"]
    assert (methods["twin"]["spread"], methods["tunable"]["spread"]) == (4.0, 1.0)


def test_identity_is_of_what_trials_are(root):
    def identity(*more: str) -> str:
        return _load(root, *more, check=False).identity

    one = identity()
    same = ("tune.trials=9", "tune.workers=3", "tune.confirm.top=1", "tune.storage=postgresql://me:secret@host/db")
    assert all(identity(argument) == one for argument in same)
    assert identity("only=[positions]") == one, "other methods are no part of it"
    others = ("tune.samples=20", "tune.seed=1", "tune.space.spread.high=5", "scale.steps=31")
    assert len({one, *(identity(argument) for argument in others)}) == 5


def test_password_is_nowhere(root):
    loaded = _load(root, "tune.storage=postgresql://me:secret@host/db")
    assert loaded.cfg.storage == "postgresql://me:secret@host/db"
    assert "secret" not in f"{loaded.tree} {loaded.command} {loaded.identity_parts} {loaded.base_args}"


def test_workers_are_sent_plain_data_without_a_login(root):
    storage, uri = "tune.storage=postgresql://me:secret@host/db", "tracking.uri=postgresql://me:secret@host/runs"
    loaded = _load(root, storage, uri)
    _ = loaded.context.session.data  # what the command has built for itself stays with it
    sent = ForkingPickler.dumps((replace(loaded.context), loaded.job({"methods.tunable.spread": 3.0})))
    assert b"secret" not in bytes(sent) and len(bytes(sent)) < 20_000


def test_parts_can_be_changed_added_and_taken_out(root):
    loaded = _load(
        root, "~tune.space.corners", "tune.space.spread={low: 1, high: 2}", "~tune.constraints.repeats",
        "tune.constraints.low={column: gen_ppl, nfe: 4, max: 9}", "tune.objectives.speed={column: seconds_per_seq, nfe: 2}",
    )  # fmt: skip
    assert (
        "methods.tunable.samplers.tuned.corners" not in loaded.cfg.space
        and loaded.cfg.space["methods.tunable.spread"].high == 2
    )
    assert list(loaded.cfg.constraints) == ["low"] and loaded.directions == ["minimize", "minimize"]


def test_several_objectives_do_not_prune_and_say_so(root):
    more = ("tune.pruner.kind=median", "tune.objectives.entropy={column: repeats, nfe: 2}")
    loaded = _load(root, *more)
    assert loaded.cfg.pruner.kind == "none" and any("no trial is pruned" in line for line in loaded.notes)
    assert loaded.cfg.objectives["entropy"].direction == "data" and loaded.directions[1] == "minimize"
    assert any("share their weights" in line for line in _load(root, "tune.pruner.kind=median", tune="heat").notes)


@pytest.mark.parametrize("name", sorted(_STUDIES))
def test_the_searches_that_come_with_it_fit_their_studies(name, tmp_path):
    assert set(find_entries([studies_folder()])["tune"]) == set(_STUDIES)
    for study in _STUDIES[name]:
        task = ["only_tasks=[binsaw]"] if study == "exact" else []
        loaded = load_tune([f"study={study}", *task, f"tune={name}", f"runs_dir={tmp_path}"], check=False)
        assert len(loaded.cfg.space) >= 3 and loaded.cfg.constraints and loaded.cfg.budgets == [4]


def test_schedule_is_for_sampling_alone(tmp_path):
    shared = [f"runs_dir={tmp_path}", f"cache_dir={tmp_path}", "data=templates", "judge=oracle", "scale.length=32"]
    loaded = load_tune(["study=smoke", *shared, "tokenizer=characters", "tune=schedule", "tune.samples=20"])
    assert loaded.cfg.method == "seq/diffusion" and loaded.samples_only
    assert not any(key.endswith(".path") for key in loaded.cfg.space)
    assert not loaded.cfg.space["methods.seq.samplers.diffusion.latent_share"].when


# ---- what cannot be meant ---------------------------------------------------------------------------------------------
_ARGUMENTS = {
    "tune=toi": ["tune=toi", "'toy'"],
    "tune.trails=3": ["tune.trails", "tune.trials"],
    "tune.pruner.kid=median": ["tune.pruner.kid", "tune.pruner.kind"],
    "tune.pruner.kind=medium": ["tune.pruner.kind=medium", "'median'"],
    "tune.trials=0": ["tune.trials=0", "1 or more"],
    "tune.workers=-1": ["tune.workers=-1", "0 or more"],
    "tune.retries=-2": ["tune.retries=-2", "0 or more"],
    "tune.storage=sqlite:///trials.db": ["sqlite:... is no storage"],
    "tune.trials=many": ["tune.trials", "many", "Integer"],
    "tune.sampler=tep": ["tune.sampler=tep", "'tpe'"],
    "tune.method=tunible": ["tune.method=tunible", "'tunable'"],
    "tune.method=tunable/tund": ["tune.method=tunable/tund", "no sampler of this method", "'tunable/tuned'"],
    "tune.samples=100000": ["study.samples=100000", "held-out"],
    "tune.confirm.seeds=[0,1]": ["tune.confirm.seeds", "fresh"],
    "tune.confirm.screen=[0]": ["tune.confirm.screen", "fresh"],
    "tune.confirm.screen=[101]": ["tune.confirm.screen", "share no seed"],
    "tune.objectives.quality.column=gen_pll": ["gen_pll", "'gen_ppl'"],
    "tune.objectives.quality.colum=gen_ppl": ["colum", "'column'"],
    "tune.objectives.quality.direction=up": ["direction=up", "minimize"],
    "tune.objectives.quality.nfe=0": ["nfe=0", "1 or more", "nearest is 1"],
    "tune.objectives.quality.nfe=1": ["tune.space.methods.tunable.samplers.tuned.path at bent", "use 2 or more"],
    "tune.objectives.quality.column=reverse_nats": ["reverse_nats", "alternating"],
    "tune.constraints.repeats.within=-1": ["tune.constraints.repeats.within", "0 or more"],
    "tune.constraints.cheap={column: seconds_per_seq, within: 0.1}": ["tune.constraints.cheap", "the data have no"],
    "tune.constraints.empty={column: repeats}": ["tune.constraints.empty", "limits nothing"],
    "tune.constraints.no={column: repeats, min: 2, max: 1}": ["tune.constraints.no", "nothing satisfies"],
    "tune.space.spread.low=20": ["methods.tunable.spread", "nothing to choose from 20 to 10"],
    "tune.space.spread.low=0": ["methods.tunable.spread", "low > 0"],
    "tune.space.rounds.high=6.5": ["methods.tunable.rounds", "whole numbers"],
    "tune.space.rounds.step=99": ["methods.tunable.rounds", "steps of 99"],
    "tune.space.path.choices=[straight,bend]": ["methods.tunable.samplers.tuned.bend.when", "never is bent"],
    "tune.space.rounds={choices: [1, two]}": ["methods.tunable.rounds", "at two", "Integer"],
    "tune.space.bends.low=1": ["no such part of tune.space", "'bend'"],
    "~tune.constraints.entrop": ["~tune.constraints.entrop", "'entropy'"],
    "tune.base=['train.validationz=3']": ["train.validationz"],
    "tune.pruner={kind: median, signal: score, samples: 2}": ["tune.pruner.samples=2"],
    "tune.steps=0": ["tune.steps=0", "above 0", "default is 1"],
    "tune.confirm.screen=[4,-1]": ["tune.confirm.screen=-1", "nearest is 0"],
    "tune.confirm.seeds=[5,5]": ["tune.confirm.seeds=[5, 5]", "twice"],
    "tune.confirm.samples=3": ["tune.confirm.samples=3", "8 or more, or 0", "nearest is 8"],
    "tune.pruner.warmup=2": ["tune.pruner.warmup=2", "between 0 and 1", "nearest is 1"],
    "tune.space.spread.high=inf": ["spread.high=inf", "finite"],
}  # fmt: skip


@pytest.mark.parametrize("argument", _ARGUMENTS)
def test_a_wrong_argument_is_one_clear_line(root, argument):
    tune = [] if argument.startswith("tune=") else ["tune=toy"]
    with pytest.raises(UserError) as error:
        load_tune(arguments(root, *tune, argument), [root / "configs"])
    assert all(part in str(error.value) for part in _ARGUMENTS[argument]), str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


_SPACES = {
    "misspelt": ({"{method}.spraed": {"low": 1, "high": 2}}, ["methods.tunable.spraed", "methods.tunable.spread"]),
    "section": ({"{method}": {"choices": [1, 2]}}, ["methods.tunable", "section"]),
    "judged": ({"judge.smoothing": {"low": 1, "high": 2}}, ["judge.smoothing", "same in all trials"]),
    "budget": ({"study.nfe": {"choices": [[2], [4]]}}, ["study.nfe", "same in all trials"]),
    "other": ({"methods.boundless.spread": {"low": 1, "high": 2}}, ["methods.boundless.spread", "no trial of tunable/tuned"]),
    "refused": ({"{sampler}.heat": {"low": 1, "high": 200}}, [f"{TUNED}.heat at 200.0", "choose 0 to 100"]),
    "word": ({"{sampler}.path": {"low": 0, "high": 1}}, ["methods.tunable.samplers.tuned.path", "choices"]),
    "both": ({"{method}.spread": {"low": 0, "high": 1, "choices": [1, 2]}}, ["methods.tunable.spread", "choices"]),
    "half": ({"{method}.spread": {"low": 1}}, ["methods.tunable.spread", "low and high"]),
    "once": ({"{sampler}.path": {"choices": ["bent"]}}, ["methods.tunable.samplers.tuned.path", "two different choices"]),
    "order": (
        {"{method}.spread": {"low": 1, "high": 2, "when": {"{sampler}.bend": [1]}}},
        ["methods.tunable.spread.when", "put it before"],
    ),
    "unknown": ({"{method}.spread": {"low": 1, "high": 2, "when": {"nothing": [1]}}}, ["spread.when", "nothing"]),
    "twice": ({"methods.tunable.spread": {"low": 1, "high": 2}}, ["methods.tunable.spread", "keep one"]),
    "field": ({"{sampler}.heat": {"lo": 1, "high": 2}}, ["lo", "'low'"]),
    "type": ({"{sampler}.heat": {"low": "hot", "high": 2}}, ["hot", "Float"]),
}  # fmt: skip


@pytest.mark.parametrize("name", _SPACES)
def test_a_wrong_space_is_refused_before_a_trial(root, name):
    space, parts = _SPACES[name]
    _with(root, name, {"space": space})
    with pytest.raises(UserError) as error:
        _load(root, tune=name)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)
    assert not (root / "runs").exists()
    (
        root / "configs" / "tune" / f"{name}.yaml"
    ).unlink()  # all files of a group are read, and it would be refused again


def test_a_bound_that_there_is_not_cannot_be_pruned_on(root):
    with pytest.raises(UserError, match="Boundless has no bound"):
        _load(root, "tune.method=boundless", "tune.pruner.kind=median")
    assert math.isclose(_load(root, "tune.method=boundless").cfg.pruner.warmup, 0.25)


def test_a_study_with_tasks_needs_one(root):
    for only in ("only_tasks=[]", "only_tasks=[hmm,binsaw]"):
        with pytest.raises(UserError, match="choose one of them, for example"):
            load_tune(["study=exact", only, "tune=latent"])


def test_the_other_command_says_where_a_search_belongs(root):
    said = invoke(["--config-dir", str(root / "configs"), *arguments(root, "tune=toy")])
    assert said.code == 2 and "python -m harness.tune" in said.error
    assert "latent" in invoke(["--help"]).out
