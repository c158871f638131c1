"""Samplers and pruners as a search names them, and which of the trials so far is the best."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from harness.search.queue import make_pruner, make_sampler
from harness.search.schema import PrunerConfig, TuneConfig
from harness.search.trials import all_trials, so_far


# ---- samplers and pruners ---------------------------------------------------------------------------------------------
def test_samplers_differ_by_trial_and_not_by_worker():
    cfg = TuneConfig()
    cfg.sampler = "random"

    def drawn(number: int) -> float:
        return optuna.create_study(sampler=make_sampler(cfg, number)).ask().suggest_float("x", 0, 1)

    first = [drawn(number) for number in range(100)]
    cfg.seed = 1
    other = [drawn(number) for number in range(100)]
    assert len({*first, *other}) == 200
    cfg.seed = 0
    assert drawn(7) == first[7]


def test_samplers_take_constraints_and_pruned_trials():
    """An infeasible trial with the best value does not attract the sampler; a pruned one has no constraints."""
    cfg, study, asked = TuneConfig(), optuna.create_study(), []
    cfg.startup = 5
    for number in range(40):
        study.sampler = make_sampler(cfg, number)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        asked.append(x)
        if number % 9 == 8:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        trial.set_constraint("limit", 0.5 - x)  # x must be at least 0.5
        study.tell(trial, x)
    assert np.median(asked[20:]) > 0.4  # without the constraint it would be near 0


@pytest.mark.parametrize(
    ("kind", "made"), [("none", "NopPruner"), ("median", "MedianPruner"), ("hyperband", "HyperbandPruner")]
)
def test_pruners(kind, made):
    cfg = TuneConfig()
    cfg.pruner = PrunerConfig(kind=kind)
    assert type(make_pruner(cfg, 100)).__name__ == made


def test_a_median_pruner_waits_for_its_share_of_the_steps():
    cfg, study = TuneConfig(), optuna.create_study()
    cfg.pruner = PrunerConfig(kind="median", startup=2, warmup=0.5)
    study.pruner = make_pruner(cfg, 100)
    for value in (1.0, 2.0):
        trial = study.ask()
        for step in (25, 50, 75):
            trial.report(value, step)
        study.tell(trial, value)
    bad = study.ask()
    said = []
    for step in (25, 50, 75):
        bad.report(9.0, step)
        said.append(bad.should_prune())
    assert said == [False, True, True]
    good = study.ask()
    good.report(0.5, 75)
    assert not good.should_prune()


# ---- the best so far --------------------------------------------------------------------------------------------------
def _study(values, directions=("minimize",), constraints=None) -> optuna.Study:
    study = optuna.create_study(directions=list(directions))
    for k, value in enumerate(values):
        attributes = {} if constraints is None else {"constraints:limit": constraints[k]}
        study.add_trial(optuna.create_trial(values=list(value), system_attrs=attributes))
    return study


def _said(study: optuna.Study) -> str:
    return so_far(all_trials(study), study.directions)


def test_the_best_is_the_best_feasible_one():
    assert _said(_study([[3.0], [1.0], [2.0]])) == "best 1 (trial 1)"
    assert _said(_study([[3.0], [1.0], [2.0]], ["maximize"])) == "best 3 (trial 0)"
    assert _said(_study([[3.0], [1.0]], constraints=[-1.0, 0.5])) == "best 3 (trial 0)"
    assert _said(_study([[3.0]], constraints=[0.5])) == "none meets the constraints yet"
    assert _said(_study([])) == "none done yet"
    study = _study([[1.0]])
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED))
    assert _said(study) == "1 pruned, best 1 (trial 0)"


def test_several_objectives_have_no_single_best():
    assert _said(_study([[1.0, 5.0], [2.0, 6.0]], ["minimize", "maximize"])) == ""
