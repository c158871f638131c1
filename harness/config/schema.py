"""The typed configuration of a run. Every key that exists is a field here or of the `Options` of a named class.

Groups with a `_target_` (data, tokenizer, judge, method, metric) are typed by the `Options` dataclass of that class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from harness.config.rows import check_budgets, rows_of
from harness.errors import UserError, nearest


@dataclass
class StudyConfig:
    """What is measured: budgets, temperatures, seeds and the number of samples."""

    name: str = MISSING
    question: str = ""
    nfe: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])
    # Budgets of single methods, or of their samplers, in the place of nfe: {ar: [64], seq: {one_call: [2, 4]}}.
    nfe_of: dict[str, Any] = field(default_factory=dict)
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    seeds: list[int] = field(default_factory=lambda: [0])
    samples: int = 2000
    sampling_seed: int = 1
    bound_sequences: int = 1024  # held-out sequences of the reported bound
    bound_draws: int = 4  # Monte Carlo draws for each of them
    unmet: str = "refuse"  # a budget that a method cannot meet: stop, or "skip" it for that method and say so
    tasks: dict[str, list[str]] = field(default_factory=dict)  # studies in one: a name and its overrides for each


@dataclass
class ScaleConfig:
    """Size of the shared backbone and of the training budget: the same for every method of a study.

    With `match: flops` what is the same is not the number of steps but what they cost (`harness.study.match`).
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    length: int = 64
    steps: int = 1000
    batch: int = 32
    lr: float = 3e-3
    match: str = "tokens"  # every method trains `steps` steps; "flops": as many as cost what MDLM's `steps` steps do
    stem: int = 0  # width of a convolution over neighbouring tokens after embeddings of bidirectional networks; 0: none


#: Fields of `ScaleConfig` that came later, with the value at which what they are part of is what it was without them.
_LATER = {"match": "tokens", "stem": 0}


def scale_identity(scale: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `ScaleConfig` that identities cover: none that came later and changes nothing."""
    return {key: value for key, value in scale.items() if key not in _LATER or value != _LATER[key]}


@dataclass
class TrainConfig:
    """The recipe of the one training loop."""

    warmup: float = 0.05  # share of a stage's steps
    decay: str = "cosine"  # or "linear", "constant"
    final_lr: float = 0.05  # of the peak, where it decays
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0
    ema: float = 0.995
    accumulate: int = (
        1  # parts that a batch is cut into; their losses and gradients are averaged, each by itself a mean
    )
    validations: int = 10  # over a training run
    valid_sequences: int = 256
    log_every: int = 50  # steps between lines of the training's own values in `curves.jsonl`
    checkpoint_seconds: float = 20.0


@dataclass
class ComputeConfig:
    """Where and how it runs; nothing here changes what is measured, beyond rounding and which draws are made."""

    device: str = "auto"  # "cpu", "cuda", "cuda:1"
    precision: str = "auto"  # "float32", "bfloat16" (autocast)
    workers: int = 0  # cells at a time; 0: one for each core (CPU) or each GPU
    threads: int = 1  # CPU threads of a worker; results are the same to the bit only at the same number
    processes: int = 1  # that train one model together, on a GPU each or on CPUs; divides train.accumulate
    compile: str = "auto"  # "true", "false"; auto: on a GPU
    sample_batch: int = 250


@dataclass
class TrackingConfig:
    """Where runs are logged (see `harness.tracking`)."""

    enabled: bool = True
    uri: str | None = None  # default: sqlite in the runs folder
    experiment: str | None = None  # default: the study's name
    system_metrics: bool = True


#: Names in the folder of a study that are no task's.
RESERVED = ("cells", "earlier", "errors", "figures", "jobs", "samples", "tune", "weights")


@dataclass
class RunConfig:
    """All of a run: the groups, the named methods and metrics, and where files go."""

    study: StudyConfig = field(default_factory=StudyConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    data: Any = MISSING
    tokenizer: Any = MISSING
    judge: Any = MISSING
    methods: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)  # `methods` to run, or single samplers as method/sampler; empty: all
    only_tasks: list[str] = field(default_factory=list)  # names of `study.tasks` to run; empty: all
    runs_dir: str = "runs"
    cache_dir: str = "cache"
    plan: bool = False


def is_plain(name: str) -> bool:
    """Whether a name can be that of a folder anywhere."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is not None


def need(ok: bool, key: str, value: Any, reason: str) -> None:
    """Raise `UserError` with key, value and reason unless `ok`."""
    if not ok:
        raise UserError(f"{key}={value}: {reason}")


def check_tasks(study: str, tasks: list[str], only: list[str]) -> None:
    """Names that become folders, and the choice among a study's tasks; raises `UserError`."""
    need(is_plain(study), "study.name", study, "names a folder of runs_dir; use letters, digits, '.', '_' and '-'")
    for name in tasks:
        plain = is_plain(name) and "." not in name and name not in RESERVED
        reason = f"names a folder of the study; use letters, digits, '_' and '-', and none of {', '.join(RESERVED)}"
        need(plain, "study.tasks", name, reason)
    for name in only:
        reason = f"is no task of this study{nearest(name, tasks)}" if tasks else "this study has no tasks; drop it"
        need(name in tasks, "only_tasks", name, reason)
    need(len(set(only)) == len(only), "only_tasks", only, "a task is named twice")


def check(cfg: RunConfig) -> None:
    """Values that have the right type and yet cannot be meant; `UserError` names the first one."""
    s, c, t = cfg.study, cfg.scale, cfg.train
    check_tasks(s.name, list(s.tasks), list(cfg.only_tasks))
    choices = ("refuse", "skip")
    need(s.unmet in choices, "study.unmet", s.unmet, f"is unknown{nearest(s.unmet, choices)}")
    rows_of(cfg.methods, cfg.only)
    own = {f"study.nfe_of.{key}": budgets for key, budgets in check_budgets(s.nfe_of, cfg.methods).items()}
    for key, budgets in {"study.nfe": s.nfe, **own}.items():
        for k in budgets:
            need(k >= 1, key, k, "a budget is a positive number of network calls; the smallest is 1")
        need(len(budgets) > 0, key, "[]", "name at least one budget, for example [2,4,8]")
        need(len(set(budgets)) == len(budgets), key, list(budgets), "a budget is named twice")
    need(len(s.seeds) > 0, "study.seeds", "[]", "name at least one training seed, for example [0]")
    need(len(s.temperatures) > 0, "study.temperatures", "[]", "name at least one temperature, for example [1.0]")
    for v in s.temperatures:
        ok = 0 < v < math.inf
        need(ok, "study.temperatures", v, "a temperature divides logits and must be above 0; 1.0 leaves them")
    need(len(set(s.temperatures)) == len(s.temperatures), "study.temperatures", s.temperatures, "one is named twice")
    for v in (*s.seeds, s.sampling_seed):
        need(v >= 0, "study.sampling_seed" if v not in s.seeds else "study.seeds", v, "a seed is 0 or more")
    need(len(set(s.seeds)) == len(s.seeds), "study.seeds", s.seeds, "a seed is named twice; use each once")
    need(s.samples >= 8, "study.samples", s.samples, "too few to score; use 8 or more (2000 outside smoke runs)")
    for key in ("bound_sequences", "bound_draws"):
        need(getattr(s, key) >= 1, f"study.{key}", getattr(s, key), "must be 1 or more")
    for key in ("width", "depth", "heads", "length", "steps", "batch"):
        need(getattr(c, key) >= 1, f"scale.{key}", getattr(c, key), "must be 1 or more")
    step = 2 * c.heads
    need(
        c.width % step == 0, "scale.width", c.width,
        f"must be a multiple of 2 x heads = {step}; the nearest is {max(step, round(c.width / step) * step)}",
    )  # fmt: skip
    need(0 < c.lr < math.inf, "scale.lr", c.lr, "must be above 0 and finite; 0.001 is usual")
    hidden = c.mlp_ratio * c.width
    need(1 <= hidden < math.inf, "scale.mlp_ratio", c.mlp_ratio, "leaves no hidden unit in the MLP; 4.0 is usual")
    choices = ("tokens", "flops")
    need(c.match in choices, "scale.match", c.match, f"is unknown{nearest(c.match, choices)}")
    odd = 0 if c.stem < 2 else c.stem + 1
    reason = f"must be 0 (none) or an odd number from 3 on; the nearest is {odd}"
    need(c.stem == 0 or (c.stem >= 3 and c.stem % 2 == 1), "scale.stem", c.stem, reason)
    need(1 <= t.accumulate <= c.batch, "train.accumulate", t.accumulate, f"must be 1 to scale.batch = {c.batch}")
    need(c.batch % t.accumulate == 0, "train.accumulate", t.accumulate, f"must divide scale.batch = {c.batch}")
    need(0 <= t.ema < 1, "train.ema", t.ema, "must be at least 0 and below 1; 0 keeps no average")
    need(t.clip > 0, "train.clip", t.clip, "must be above 0")
    need(0 <= t.warmup <= 1, "train.warmup", t.warmup, "is a share of the steps, 0 to 1")
    need(0 <= t.final_lr <= 1, "train.final_lr", t.final_lr, "is a share of the peak, 0 to 1")
    need(t.weight_decay >= 0, "train.weight_decay", t.weight_decay, "must be 0 or more")
    for key in ("beta1", "beta2"):
        need(0 <= getattr(t, key) < 1, f"train.{key}", getattr(t, key), "must be at least 0 and below 1")
    for key in ("validations", "valid_sequences", "log_every"):
        need(getattr(t, key) >= 1, f"train.{key}", getattr(t, key), "must be 1 or more")
    choices = ("cosine", "linear", "constant")
    need(t.decay in choices, "train.decay", t.decay, f"is unknown{nearest(t.decay, choices)}")
    choices = ("auto", "float32", "bfloat16")
    p = cfg.compute.precision
    need(p in choices, "compute.precision", p, f"is unknown{nearest(p, choices)}")
    choices = ("auto", "true", "false")
    p = cfg.compute.compile.lower()
    need(p in choices, "compute.compile", p, f"is unknown{nearest(p, choices)}")
    need(cfg.compute.workers >= 0, "compute.workers", cfg.compute.workers, "must be 0 (automatic) or more")
    need(cfg.compute.threads >= 1, "compute.threads", cfg.compute.threads, "must be 1 or more")
    p = cfg.compute.processes
    need(p >= 1, "compute.processes", p, "must be 1 or more")
    fits = max(n for n in range(1, t.accumulate + 1) if t.accumulate % n == 0 and n <= max(p, 1))
    need(
        t.accumulate % p == 0, "compute.processes", p,
        f"must divide train.accumulate = {t.accumulate}, the parts of a batch; use train.accumulate={p} or "
        f"compute.processes={fits}",
    )  # fmt: skip
    need(cfg.compute.sample_batch >= 1, "compute.sample_batch", cfg.compute.sample_batch, "must be 1 or more")
    need(len(cfg.methods) > 0, "methods", "{}", "a study needs at least one method")
    need(len(cfg.metrics) > 0, "metrics", "{}", "a study needs at least one metric")
