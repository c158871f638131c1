"""The re-evaluation: paired differences and their verdicts, and the studies that they come from."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from harness.search import confirm as module
from harness.search.confirm import (
    BEATS,
    DEFAULT,
    NONE,
    UNKNOWN,
    WORSE,
    Confirmation,
    compare,
    confirm,
    study_tree,
    t_interval,
)  # fmt: skip
from harness.search.load import load_tune
from harness.search.results import Findings, verdict
from harness.search.trials import candidates
from tests.kit.study_kit import use_threads
from tests.kit.study_plugins import write_configs
from tests.kit.tune_kit import make_config, make_loaded, make_study

SEEDS = [11, 12, 13]


# ---- paired differences -----------------------------------------------------------------------------------------------
def test_the_interval_is_students():
    """Three differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, and t = 4.3027 with two degrees of freedom."""
    se, low, high = t_interval(np.array([1.0, 2.0, 3.0]), 0.95)
    assert se == pytest.approx(1 / math.sqrt(3))
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)
    assert t_interval(np.array([5.0]), 0.95)[1:] == (-math.inf, math.inf)


def test_what_seeds_have_in_common_cancels():
    """Seeds that differ by 10 and a configuration that is 1 better on each: only a paired comparison sees it."""
    default = {seed: 10.0 * seed for seed in SEEDS}
    ours = {seed: 10.0 * seed - 1 + 0.1 * (i - 1) for i, seed in enumerate(SEEDS)}
    p = compare("excess", ours, default, lower=True)
    assert p.verdict == BEATS and p.difference == pytest.approx(-1.0) and p.seeds == 3 and p.level == 0.95
    assert p.high == pytest.approx(-1 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-5)
    assert compare("excess", ours, default, lower=False).verdict == WORSE
    assert compare("excess", default, ours, lower=True).verdict == WORSE


def test_many_comparisons_need_more():
    default = dict.fromkeys(range(5), 1.0)
    ours = {i: 1.0 + d for i, d in enumerate((-0.1, -0.3, -0.1, -0.3, -0.5))}
    alone, among = (compare("x", ours, default, True, count) for count in (1, 4))
    assert alone.verdict == BEATS and among.verdict == NONE and among.level == pytest.approx(1 - 0.05 / 4)
    assert among.low < alone.low < alone.high < 0 < among.high


def test_intervals_hold_together_as_often_as_they_say():
    """No configuration differs: any of three is called different in at most 5 % of experiments."""
    rng = np.random.default_rng(0)
    wrong, count = 0, 400
    for _ in range(count):
        default = dict(enumerate(rng.normal(size=4)))
        said = {compare("x", dict(enumerate(rng.normal(size=4))), default, True, 3).verdict for _ in range(3)}
        wrong += said != {NONE}
    assert 0 < wrong / count < 0.05 + 2 * math.sqrt(0.05 * 0.95 / count)


@pytest.mark.parametrize(("ours", "seeds"), [({}, 0), ({11: 0.5}, 1), ({99: 0.5}, 0)])
def test_too_few_seeds_tell_nothing(ours, seeds):
    p = compare("excess", ours, dict.fromkeys(SEEDS, 1.0), True)
    assert p.verdict == UNKNOWN and p.seeds == seeds and (p.low, p.high) == (-math.inf, math.inf)


# ---- the winner ---------------------------------------------------------------------------------------------------------
def _done(values: dict[str, dict[int, float]], broken: tuple[str, ...] = ()) -> Confirmation:
    runs = [
        {"label": label, "seed": seed, "value.excess": value, "constraint.entropy": 0.5 if label in broken else -0.5}
        for label, found in values.items()
        for seed, value in found.items()
    ]
    return Confirmation(runs, SEEDS)


def _judged(tmp_path, done: Confirmation) -> Confirmation:
    loaded = make_loaded(tmp_path, make_config(constrained=True))
    labels = [label for label in dict.fromkeys(r["label"] for r in done.runs) if label != DEFAULT]
    module._judge(loaded, done, labels, np.array([1.0]))
    return done


def test_the_winner_finished_all_seeds_and_keeps_the_constraints(tmp_path):
    values = {
        DEFAULT: dict.fromkeys(SEEDS, 1.0),
        "a": dict.fromkeys(SEEDS, 0.6),
        "b": dict.fromkeys(SEEDS, 0.3),
        "c": {11: 0.1},
    }
    done = _judged(tmp_path, _done(values, broken=("b",)))
    assert done.winner == "a"
    assert "b: breaks the constraint entropy on 3 of 3 seeds" in done.remarks
    assert "c: only 1 of 3 seeds finished" in done.remarks
    assert done.paired["b"][0].verdict == BEATS and done.paired["c"][0].verdict == UNKNOWN
    assert _judged(tmp_path, _done(values, broken=("a", "b"))).winner == "b", "where none keeps them, the best"
    assert _judged(tmp_path, _done({DEFAULT: values[DEFAULT], "c": {11: 0.1}})).winner == "c"
    assert _judged(tmp_path, _done({DEFAULT: values[DEFAULT]})).winner == ""


def test_the_verdict_names_how_many_seeds(tmp_path):
    done = _judged(
        tmp_path, _done({DEFAULT: dict(zip(SEEDS, (1.0, 1.1, 0.9), strict=True)), "a": dict.fromkeys(SEEDS, 0.2)})
    )
    found = Findings([], SimpleNamespace(label="a"), confirmation=done)
    assert verdict(found) == "Verdict on a with 3 fresh seeds: beats the default."


# ---- its studies --------------------------------------------------------------------------------------------------------
TUNE = """\
# The learning rate
method: positions
space:
  scale.lr: {low: 0.0001, high: 0.5, log: true}
objectives:
  bound: {column: nelbo_nats_per_token, nfe: 2}
constraints:
  repeats: {column: repeats, nfe: 4, min: 0.0}
samples: 16
confirm: {top: 2, seeds: [11, 12, 13]}
"""


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    use_threads(monkeypatch)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, buffer, **_: buffer.write(b"blank"))
    folder = tmp_path / "configs"
    arguments = write_configs(folder)[2:]
    (folder / "tune").mkdir()
    (folder / "tune" / "rate.yaml").write_text(TUNE, encoding="utf-8")
    more = ["tune=rate", f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", "scale.lr=0.0002"]
    return load_tune([*arguments, *more], [folder])


def _searched(*rates: float) -> optuna.Study:
    study = make_study()
    for i, rate in enumerate(rates):
        spread = {"scale.lr": FloatDistribution(1e-4, 0.5, log=True)}
        trial = create_trial(
            state=TrialState.COMPLETE, value=0.1 * i, params={"scale.lr": rate}, distributions=spread,
            system_attrs={"constraints:repeats": -0.1},
        )  # fmt: skip
        study.add_trial(trial)
    return study


def test_its_studies_are_the_studys_own_with_fresh_seeds(loaded):
    tree = study_tree(loaded, ["scale.lr=0.2"], "trial-0007", SEEDS)
    assert tree["study"]["name"] == "toy/tune/rate/confirm/trial-0007" and tree["only"] == ["positions/independent"]
    assert tree["study"]["seeds"] == SEEDS and tree["study"]["nfe"] == [2, 4] and tree["study"]["samples"] == 16
    assert tree["scale"] == loaded.base.tree["scale"] | {"lr": 0.2}, "all of its training steps"


def test_a_better_rate_is_confirmed_and_a_second_look_reads_what_is_there(loaded, monkeypatch):
    study = _searched(0.2, 0.0002)
    chosen = candidates(loaded, study, 2)
    done = confirm(loaded, study, chosen)
    frame = pd.read_parquet(loaded.folder / "confirm.parquet")
    assert list(frame["label"]) == [DEFAULT] * 3 + ["trial-0000"] * 3 + ["trial-0001"] * 3
    assert sorted(set(frame["seed"])) == SEEDS and frame["value.bound"].notna().all() and frame["feasible"].all()
    assert done.winner == "trial-0000" and done.failures == {}
    fast, same = done.paired["trial-0000"][0], done.paired["trial-0001"][0]
    assert fast.verdict == BEATS and fast.seeds == 3 and fast.difference < -0.05
    assert same.difference == 0.0 and same.verdict == NONE, (
        "the default once more: the same numbers, from the same weights"
    )
    values = {(r["label"], r["seed"]): r["value.bound"] for r in done.runs}
    by_hand = [values["trial-0000", s] - values[DEFAULT, s] for s in SEEDS]
    assert fast.difference == pytest.approx(np.mean(by_hand)) and fast.se == pytest.approx(
        np.std(by_hand, ddof=1) / 3**0.5
    )
    assert fast.level == pytest.approx(0.975), "two comparisons"
    homes = sorted(p.parent.name for p in (loaded.folder / "confirm" / "weights").glob("*/model.safetensors"))
    assert len(homes) == 6, "the default and trial 1, which are the same, share their weights"

    monkeypatch.setattr("harness.jobs.pool.Pool.assign", lambda *_: pytest.fail("there is nothing left to run"))
    again = confirm(loaded, study, chosen)
    assert again.runs == done.runs and again.paired == done.paired


def test_it_goes_on_where_it_was_cut_off(loaded, monkeypatch):
    study = _searched(0.2)
    chosen = candidates(loaded, study, 1)
    real, asked = module.run_study, []

    def cut(session, command):
        asked.append(Path(session.cfg.study.name).name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(session, command)

    monkeypatch.setattr(module, "run_study", cut)
    with pytest.raises(KeyboardInterrupt):
        confirm(loaded, study, chosen)
    assert not (loaded.folder / "confirm.parquet").exists()
    weights = loaded.folder / "confirm" / "weights"
    before = {p: p.stat().st_mtime_ns for p in weights.glob("*/model.safetensors")}
    assert len(before) == 3
    done = confirm(loaded, study, chosen)
    assert asked == [DEFAULT, "trial-0000"] * 2 and len(done.runs) == 6
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing was trained twice"


def test_a_seed_that_fails_is_said_and_looked_at_again(loaded, monkeypatch):
    study = _searched(0.2)
    real = module.run_study

    def failing(session, command):
        outcome = real(session, command)
        if session.cfg.study.name.endswith("trial-0000"):
            outcome.failures["positions/seed12"] = "the loss is nan"
        return outcome

    monkeypatch.setattr(module, "run_study", failing)
    chosen = candidates(loaded, study, 1)
    done = confirm(loaded, study, chosen)
    assert done.failures == {"trial-0000 seed12": "the loss is nan"}
    assert [r["seed"] for r in done.of("trial-0000")] == [11, 13] and done.paired["trial-0000"][0].seeds == 2
    assert "trial-0000: only 2 of 3 seeds finished" in done.remarks
    monkeypatch.setattr(module, "run_study", real)
    assert len(confirm(loaded, study, chosen).runs) == 6


def test_other_seeds_are_another_confirmation(loaded):
    study = _searched()
    chosen = candidates(loaded, study, 1)
    assert chosen == [] and [r["seed"] for r in confirm(loaded, study, chosen).runs] == SEEDS
    loaded.cfg.confirm.seeds = [21]
    done = confirm(loaded, study, chosen)
    assert [r["seed"] for r in done.runs] == [21]
    assert list(pd.read_parquet(loaded.folder / "confirm.parquet")["seed"]) == [21]


def test_a_first_round_chooses_who_is_compared(loaded, capsys):
    """The search's second is the better one: the screening seeds find it, and the comparison is of it alone."""
    loaded.cfg.confirm.screen = [21, 22]
    study = _searched(0.0002, 0.2)
    chosen = candidates(loaded, study, 2)
    done = confirm(loaded, study, chosen)
    assert {(r["label"], r["seed"]) for r in done.screened} == {(c.label, s) for c in chosen for s in (21, 22)}
    assert {r["label"] for r in done.runs} == {DEFAULT, "trial-0001"} and sorted(
        {r["seed"] for r in done.runs}
    ) == SEEDS
    assert done.winner == "trial-0001" and list(done.paired) == ["trial-0001"]
    assert done.paired["trial-0001"][0].level == 0.95, "one interval, which was chosen on other seeds"
    assert sorted(set(pd.read_parquet(loaded.folder / "confirm.parquet")["seed"])) == SEEDS
    assert "confirmation of trial-0001-screen, seeds 21, 22" in capsys.readouterr().err
    assert confirm(loaded, study, chosen) == done


def test_one_candidate_needs_no_first_round(loaded):
    loaded.cfg.confirm.screen = [21, 22]
    study = _searched(0.2)
    done = confirm(loaded, study, candidates(loaded, study, 1))
    assert done.screened == [] and {r["label"] for r in done.runs} == {DEFAULT, "trial-0000"}
