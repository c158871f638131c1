"""The typed configuration of a run. Every key that exists is a field here or of the `Options` of a named class.

Groups with a `_target_` (data, tokenizer, judge, method, metric) are typed by the `Options` dataclass of that class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from harness.config.fields import check_fields, chosen, ranged
from harness.config.rows import check_budgets, check_names, is_plain, rows_of
from harness.config.slurm import SlurmConfig, check_line, check_slurm
from harness.errors import UserError, nearest
from harness.search.schema import TuneConfig

PROMPTS = ("none", "prefix", "half")


@dataclass
class StudyConfig:
    """What is measured: budgets, temperatures, seeds and the number of samples."""

    name: str = MISSING  # of its folder in runs_dir
    question: str = ""  # that it answers
    nfe: list[int] = ranged([2, 4, 8, 16, 32], 1, filled=True, distinct=True)  # budgets of network calls
    nfe_of: dict[str, Any] = ranged({}, 1, filled=True, distinct=True)  # own ones: {ar: [64], seq: {one_call: [2, 4]}}
    equivalent_nfe: list[float] = ranged([], 1, distinct=True)  # and budgets of equal sampling FLOPs, in MDLM's calls
    temperatures: list[float] = ranged([1.0], 0, above=True, filled=True, distinct=True)  # that divide logits
    seeds: list[int] = ranged([0], 0, filled=True, distinct=True)  # of training
    samples: int = ranged(2000, 8)  # of each cell
    prompt: str = chosen(
        "none", PROMPTS
    )  # draw given the first half of held-out texts, or half of their tokens at random
    sampling_seed: int = ranged(1, 0)  # of all draws
    bound_sequences: int = ranged(1024, 1)  # held-out sequences of the reported bound
    bound_draws: int = ranged(4, 1)  # Monte Carlo draws for each of them
    unmet: str = chosen("refuse", ("refuse", "skip"))  # a budget that a method cannot meet: stop, or skip it and say so
    tasks: dict[str, list[str]] = field(default_factory=dict)  # studies in one: a name and its overrides for each


@dataclass
class ScaleConfig:
    """Size of the shared backbone and of the training budget: the same for every method of a study.

    With `match: flops` what is the same is not the number of steps but what they cost (`harness.study.match`).
    """

    width: int = ranged(128, 1)  # a multiple of 2 x heads
    depth: int = ranged(4, 1)  # layers
    heads: int = ranged(4, 1)  # of attention
    mlp_ratio: float = ranged(4.0, 0, above=True)  # hidden units of an MLP, in widths
    length: int = ranged(64, 1)  # tokens of a sequence
    steps: int = ranged(1000, 1)  # of the optimiser
    batch: int = ranged(32, 1)  # sequences of a step
    lr: float = ranged(3e-3, 0, above=True)  # the peak
    match: str = chosen("tokens", ("tokens", "flops"))  # same `steps` for all, or as many as cost what MDLM's steps do
    stem: int = ranged(0, 3, also=(0,))  # odd width of a convolution after the embeddings; 0: none


@dataclass
class TrainConfig:
    """The recipe of the one training loop."""

    warmup: float = ranged(0.05, 0, 1)  # share of a stage's steps
    decay: str = chosen("cosine", ("cosine", "linear", "constant"))  # of the learning rate after the warm-up
    final_lr: float = ranged(0.05, 0, 1)  # of the peak, where it decays
    optimizer: str = chosen("adamw", ("adamw", "muon"))  # muon: on the matrices of the blocks, AdamW on all else
    muon_lr: float = ranged(0.02, 0, above=True)  # the peak of Muon's rate; scale.lr is AdamW's
    weight_decay: float = ranged(0.01, 0)  # of matrices
    beta1: float = ranged(0.9, 0, 1, below=True)  # of AdamW
    beta2: float = ranged(0.98, 0, 1, below=True)  # of AdamW
    mask_growth: float = ranged(0.0, 0, 1)  # share of a stage's steps in which the masked share grows from 0.3 to all
    clip: float = ranged(1.0, 0, above=True, also=(math.inf,))  # largest norm of a gradient
    ema: float = ranged(0.1, 0, 1)  # share of a stage's steps that the averaged weights look back; 0 keeps no average
    accumulate: int = ranged(1, 1)  # parts that a batch is cut into; their losses and gradients, means, are averaged
    validations: int = ranged(10, 1)  # over a training run
    valid_sequences: int = ranged(256, 1)  # of a validation
    log_every: int = ranged(50, 1)  # steps between lines of the training's own values in `curves.jsonl`
    checkpoint_seconds: float = ranged(20.0, 0)  # between two checkpoints at the least
    checkpoint_share: float = ranged(0.02, 0, 1, above=True)  # of the time that they may take: large ones are rarer


@dataclass
class ComputeConfig:
    """Where and how it runs; nothing here changes what is measured, beyond rounding and which draws are made."""

    device: str = "auto"  # "cpu", "cuda", "cuda:1"
    precision: str = chosen("auto", ("auto", "float32", "bfloat16"))  # bfloat16 is autocast
    workers: int = ranged(0, 0)  # cells at a time; 0: one for each core (CPU) or each GPU
    threads: int = ranged(1, 1)  # CPU threads of a worker; results are the same to the bit only at the same number
    processes: int = ranged(1, 1)  # that train one model together, on a GPU each or on CPUs; divides train.accumulate
    shard: bool = False  # each of `processes` holds a share of what is trained: for models that outgrow a GPU
    compile: str = chosen("auto", ("auto", "true", "false"))  # auto: on a GPU, and where it pays
    activation_checkpointing: bool = False  # less memory in training for a third more work; the same numbers
    sample_batch: int = ranged(250, 1)  # sequences that are drawn at a time
    eval_tokens: int = ranged(32768, 1)  # tokens that networks without gradient and judges read at a time


@dataclass
class TrackingConfig:
    """Where runs are logged (see `harness.tracking`)."""

    enabled: bool = True
    uri: str | None = None  # of any server; default: sqlite in the runs folder
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
    data: Any = MISSING  # data=NAME
    tokenizer: Any = MISSING  # tokenizer=NAME
    judge: Any = MISSING  # judge=NAME
    methods: dict[str, Any] = field(default_factory=dict)  # +method@methods.OWN_NAME=NAME
    metrics: dict[str, Any] = field(default_factory=dict)  # +metric@metrics.OWN_NAME=NAME
    only: list[str] = field(default_factory=list)  # `methods` to run, or single samplers as method/sampler; empty: all
    only_tasks: list[str] = field(default_factory=list)  # names of `study.tasks` to run; empty: all
    runs_dir: str = "runs"
    cache_dir: str = "cache"
    plan: bool = False  # say what would run, and stop
    stale: str = chosen("refuse", ("refuse", "keep"))  # finished results of other code: stop, or go on with them
    redo: list[str] = field(default_factory=list)  # methods, method/sampler or all: make those results again
    tune: TuneConfig = field(default_factory=TuneConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    wait: bool = True  # for the jobs of harness.submit, until all is done and published


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
    check_tasks(cfg.study.name, list(cfg.study.tasks), list(cfg.only_tasks))
    check_names(cfg.methods, cfg.metrics)
    rows_of(cfg.methods, cfg.only)
    check_budgets(cfg.study.nfe_of, cfg.methods)
    check_fields(cfg)
    need(len(cfg.methods) > 0, "methods", "{}", "a study needs at least one method")
    need(len(cfg.metrics) > 0, "metrics", "{}", "a study needs at least one metric")
    check_slurm(cfg.slurm)
    _check_folder("runs_dir", cfg.runs_dir)
    _check_folder("cache_dir", cfg.cache_dir)
    check_line("runs_dir", cfg.runs_dir)  # where jobs have their logs
    _check_scale(cfg.scale)
    _check_parts(cfg.scale.batch, cfg.train.accumulate, cfg.compute.processes)
    _check_shard(cfg.compute)


def _check_folder(key: str, value: str) -> None:
    """A path that the system can look at, whether it is there or not."""
    need(value.strip() != "", key, value, "is empty; name a folder")
    try:
        Path(value).resolve().exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; links in a circle; a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{key}={value!r}: is no path ({reason}); choose another folder") from error


def _check_scale(c: ScaleConfig) -> None:
    """The network has heads of even size, hidden units and a stem with a middle."""
    step = 2 * c.heads
    near = max(step, round(c.width / step) * step)
    need(
        c.width % step == 0, "scale.width", c.width, f"must be a multiple of 2 x heads = {step}; the nearest is {near}"
    )
    need(c.mlp_ratio * c.width >= 1, "scale.mlp_ratio", c.mlp_ratio, "leaves no hidden unit in the MLP; 4.0 is usual")
    need(c.stem == 0 or c.stem % 2 == 1, "scale.stem", c.stem, f"must be 0 or odd; the nearest is {c.stem + 1}")


def _check_shard(c: ComputeConfig) -> None:
    """Shares need processes to hold them; what gathers them while a model runs is not compiled."""
    way_out = "shares are those of several processes; use compute.processes=2 or compute.shard=false"
    need(not c.shard or c.processes > 1, "compute.shard", "true", way_out)
    way_out = (
        "shares are gathered block by block, which is not compiled; use compute.compile=auto or compute.shard=false"
    )
    need(not c.shard or c.compile.lower() != "true", "compute.compile", c.compile, way_out)


def _check_parts(batch: int, parts: int, processes: int) -> None:
    """Sequences can be shared out among the parts of a batch, and those among processes."""
    need(batch % parts == 0, "train.accumulate", parts, f"must divide scale.batch = {batch}")
    fits = max(n for n in range(1, parts + 1) if parts % n == 0 and n <= processes)
    reason = f"must divide train.accumulate = {parts}, the parts of a batch"
    way_out = f"use train.accumulate={processes} or compute.processes={fits}"
    need(parts % processes == 0, "compute.processes", processes, f"{reason}; {way_out}")
