"""Optuna's samplers and pruners as a tuning names them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial

from harness.search.schema import TuneConfig
from harness.search.trials import CONSTRAINTS


def trial_seed(seed: int, number: int) -> int:
    """A seed for the sampler that no other trial of the study has.

    A function of the trial, not of the worker: a worker that is started again must not repeat what it drew before, and
    however many workers there are, what is drawn at random for a trial is the same.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def make_sampler(cfg: TuneConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of this number."""
    seed = trial_seed(cfg.seed, number)
    if cfg.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    constrained = _constraints_of(len(cfg.constraints)) if cfg.constraints else None
    if cfg.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, constraints_func=constrained)
    return optuna.samplers.TPESampler(
        n_startup_trials=cfg.startup,
        seed=seed,
        multivariate=True,
        group=True,
        constant_liar=True,
        constraints_func=constrained,
    )


def _constraints_of(count: int) -> Callable[[FrozenTrial], list[float]]:
    def constraints(trial: FrozenTrial) -> list[float]:
        # A pruned trial was not scored: nothing says that it breaks a constraint.
        return trial.user_attrs.get(CONSTRAINTS) or [0.0] * count

    return constraints


def make_pruner(cfg: TuneConfig, steps: int) -> optuna.pruners.BasePruner:
    """The pruner for trials of `steps` training steps."""
    pruner = cfg.pruner
    first = max(1, round(pruner.warmup * steps))
    if pruner.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=first)
    if pruner.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=max(first, steps))
    return optuna.pruners.NopPruner()
