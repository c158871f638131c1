"""Searches for tests: a configuration, with trials put into a storage by hand, and what must be true of trials after kills."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from harness.config.schema import RunConfig
from harness.search.schema import ConfirmConfig, ConstraintConfig, DimensionConfig, ObjectiveConfig, TuneConfig
from harness.search.storage import CREATED
from harness.search.trials import RETRY_OF, status, tally

SPACE: dict[str, BaseDistribution] = {
    "methods.seq.slots": IntDistribution(1, 8),
    "methods.seq.noise": FloatDistribution(0.01, 1.0, log=True),
    "methods.seq.path": CategoricalDistribution(["joint", "split"]),
    "methods.seq.split": FloatDistribution(0.0, 1.0),  # only where path is split
}
BEGAN = datetime.datetime(2026, 1, 2, 3, 4, 5)


def make_config(objectives: int = 1, constrained: bool = False) -> TuneConfig:
    """A search over `SPACE` for `excess` at NFE 4, and for `seconds` where there are two objectives."""
    dimensions = {
        "methods.seq.slots": DimensionConfig("int", 1, 8),
        "methods.seq.noise": DimensionConfig("float", 0.01, 1.0, log=True),
        "methods.seq.path": DimensionConfig("categorical", choices=["joint", "split"]),
        "methods.seq.split": DimensionConfig("float", 0.0, 1.0, when={"methods.seq.path": ["split"]}),
    }
    goals = {"excess": ObjectiveConfig("excess", 4), "seconds": ObjectiveConfig("seconds_per_seq", 4)}
    return TuneConfig(
        name="latent",
        method="seq/diffusion",
        space=dimensions,
        objectives=dict(list(goals.items())[:objectives]),
        constraints={"entropy": ConstraintConfig("entropy", 4, min=1.0)} if constrained else {},
        confirm=ConfirmConfig(top=2, seeds=[101, 102, 103]),
    )


def make_loaded(root: Path, cfg: TuneConfig | None = None, tracked: bool = False, **more: Any) -> Any:
    """What `harness.search.load` gives, as far as storage, queue and results look at it; `more` replaces parts."""
    base = RunConfig(runs_dir=str(root / "runs"))
    base.study.name = more.pop("study", "toy")
    cfg, identity = cfg or make_config(), more.pop("identity", "abc123")
    base.tracking.enabled, base.tracking.system_metrics = tracked, False
    folder = more.pop("folder", None) or root / "runs" / "toy" / "tune" / "latent"
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"study": {"name": "toy", "temperatures": [1.0]}, "tracking": {"experiment": None, "uri": None}}
    return SimpleNamespace(
        cfg=cfg,
        name=f"{base.study.name}/{cfg.name}",
        notes=[],
        directions=["minimize"] * len(cfg.objectives),
        identity_parts={"space": "toy", "given": identity},
        tree={"name": "latent", "storage": "postgresql://me:secret@db/x", "trials": 40},
        base=SimpleNamespace(cfg=base, tree=tree),
        base_args=["study=toy"],
        config_dirs=[],
        folder=folder,
        identity=identity,
        code={"lddm.seq": "0123"},
        command="python -m harness.tune study=toy tune=latent tune.storage=postgresql://me:secret@db/x",
        **more,
    )


def make_study(directions: tuple[str, ...] = ("minimize",)) -> optuna.Study:
    """An empty study in memory, marked as `harness.search.storage` marks it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=list(directions), study_name="toy/latent")
    study.set_metric_names(["excess", "seconds"][: len(directions)])
    study.set_user_attr(CREATED, "2026-01-02T03:04:05+0000")
    return study


def add(study: optuna.Study, params: dict[str, Any], values: list[float] | None = None, **more: Any) -> int:
    """Put a trial with these parameters into the study; without values it is pruned, or as `state=` says.

    `entropy` is its constraint; further arguments are user attributes, as a search sets them. Returns its number.
    """
    state = more.pop("state", TrialState.COMPLETE if values is not None else TrialState.PRUNED)
    number = len(study.get_trials(deepcopy=False))
    trial = create_trial(
        state=state,
        values=values,
        params=params,
        distributions={key: SPACE[key] for key in params},
        system_attrs={"constraints:entropy": more.pop("entropy")} if "entropy" in more else {},
        user_attrs={"asked_by": "host-1", **more},
    )
    trial.datetime_start = BEGAN + datetime.timedelta(seconds=10 * number)
    trial.datetime_complete = trial.datetime_start + datetime.timedelta(seconds=7) if state.is_finished() else None
    study.add_trial(trial)
    return number


def fill(
    study: optuna.Study, count: int, values: Callable[[dict[str, Any]], list[float]], constrained: bool = False
) -> None:
    """Trials on a grid of sorts; every third with `path=split` and its own `split`; with scores as workers keep them."""
    for i in range(count):
        params: dict[str, Any] = {"methods.seq.slots": 1 + (3 * i) % 8, "methods.seq.noise": 0.01 * 1.2 ** (i % 20)}
        params["methods.seq.path"] = "split" if i % 3 == 2 else "joint"
        if i % 3 == 2:
            params["methods.seq.split"] = (i % 7) / 7
        found = values(params)
        facts = {"score": {"excess@4": found[0], "entropy@4": 1.5}, "seconds": {"train": 2.0}, "trained": True}
        add(study, params, found, **facts, **({"entropy": params["methods.seq.noise"] - 0.2} if constrained else {}))


def check_nothing_lost(trials: list[optuna.trial.FrozenTrial], wanted: int) -> None:
    """The wanted number, each configuration once, and what was lost asked for again exactly once with its values."""
    now = tally(trials)
    assert now["counted"] == wanted and not now["running"] and not now["waiting"], now
    counted = [str(t.params) for t in trials if status(t) != "lost"]
    assert len(set(counted)) == len(counted) == wanted, "a configuration is counted twice"
    again = Counter(t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs)
    lost = {t.number for t in trials if status(t) == "lost"}
    assert set(again) == lost and set(again.values()) <= {1}, "a lost trial was not begun again once"
    by_number = {t.number: t for t in trials}
    for trial in trials:
        before = by_number.get(trial.user_attrs.get(RETRY_OF))
        asked = trial.system_attrs.get("fixed_params", {}) | trial.params
        assert before is None or before.params.items() <= asked.items(), "begun again with other values"
