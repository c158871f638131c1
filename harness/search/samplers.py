"""Optuna's samplers and pruners as a tuning names them."""

from __future__ import annotations

import hashlib

import optuna

from harness.search.schema import TuneConfig


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
    if cfg.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=cfg.startup, seed=seed, multivariate=True, group=True, constant_liar=True
    )


def make_pruner(cfg: TuneConfig, steps: int) -> optuna.pruners.BasePruner:
    """The pruner for trials of `steps` training steps."""
    pruner = cfg.pruner
    first = max(1, round(pruner.warmup * steps))
    if pruner.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=first)
    if pruner.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=max(first, steps))
    return optuna.pruners.NopPruner()
