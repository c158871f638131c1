"""The one training loop: every method goes through it, stage by stage, with the same optimizer and schedule.

All randomness is a function of (seed, step, part of the batch): a run that was killed continues from its checkpoint with
the same numbers. Several processes may train one model (`harness.training.distributed`): each takes some of the parts, and
the first alone writes.

Shapes: B batch, L tokens, N sequences, P parts of a batch, K named values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.config.schema import ScaleConfig, TrainConfig
from harness.data.base import TokenData
from harness.errors import JobError
from harness.interface import Loss, Method
from harness.store import append_jsonl, read_jsonl
from harness.training import checkpoint
from harness.training.distributed import Group, SharedLoss
from harness.training.ema import EMA
from harness.training.precision import Numerics


class Diverged(JobError):
    """The loss is not a number any more; the cell stops, the study goes on."""


@dataclass(frozen=True)
class Job:
    """What to train, with which budget, and where its files go (`train.safetensors`, `curves.jsonl`)."""

    method: Method
    data: TokenData
    scale: ScaleConfig
    train: TrainConfig
    numerics: Numerics
    seed: int
    folder: Path
    progress: Callable[[str, int, int], None]
    #: Told the step and the values of each validation, with the averaged weights in the method. What it raises ends training.
    on_validation: Callable[[int, dict[str, float]], None] | None = None
    #: The processes that train this model together; by itself, one.
    group: Group = field(default_factory=Group)


def step_generator(device: str, *key: int) -> torch.Generator:
    """A generator whose state depends on the whole key and on nothing else."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device=device).manual_seed(seed)


def batch_rows(rows: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Row numbers (B,) of a step's batch: a fresh permutation of all rows in each epoch, cut into batches."""
    index = np.arange(step * batch, (step + 1) * batch)
    epochs = np.unique(index // rows)
    picks = [_permutation(rows, seed, int(e))[index[index // rows == e] % rows] for e in epochs]
    return np.concatenate(picks)


def budget_rows(rows: int, scale: ScaleConfig, seed: int) -> np.ndarray:
    """Row numbers (N,), ascending, of the sequences that the first `scale.steps` steps see, each once."""
    return np.sort(batch_rows(rows, min(scale.steps * scale.batch, rows), 0, seed))


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Kept for the epoch: drawing it anew cost a twentieth of each step."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def learning_rate(train: TrainConfig, peak: float, step: int, steps: int) -> float:
    """Linear warm-up to `peak`, then cosine or linear decay to `final_lr` of it over a stage's steps."""
    warm = max(1, round(train.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[train.decay]
    return peak * (train.final_lr + (1 - train.final_lr) * shape) if train.decay != "constant" else peak


def stage_steps(method: Method, steps: int) -> list[tuple[str, int]]:
    """(stage, steps) with whole numbers that sum to `steps`."""
    ends, total = [], 0.0
    stages = method.stages()
    for stage in stages:
        total += stage.share
        ends.append(round(steps * total))
    ends[-1] = steps
    starts = [0, *ends[:-1]]
    return [(s.name, max(e - b, 0)) for s, b, e in zip(stages, starts, ends, strict=True)]


def _optimizer(method: Method, scale: ScaleConfig, train: TrainConfig) -> torch.optim.AdamW:
    """Weight decay on matrices only: gains, biases and embeddings are scales, not maps."""
    named = list(method.named_parameters())
    matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in named if not (p.dim() == 2 and "embed" not in n)]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=scale.lr, betas=(train.beta1, train.beta2), fused=True)


def train(job: Job) -> dict[str, float]:
    """Train to the end and leave the averaged weights in `job.method`; returns the facts of the run.

    Raises `Diverged` on a loss that is not finite, `UserError` for a corrupt checkpoint.
    """
    method, numerics = job.method, job.numerics
    method.to(numerics.device)
    plan = stage_steps(method, job.scale.steps)
    optimizer, ema = _optimizer(method, job.scale, job.train), EMA(method, job.train.ema)
    path = job.folder / "train.safetensors"
    at, seconds = 0, 0.0
    if path.exists():
        tensors, meta = checkpoint.load_tensors(path)
        checkpoint.restore_training_state(tensors, method, ema.shadow, optimizer, path)
        at, ema.updates, seconds = meta["step"], meta["ema_updates"], meta["seconds"]
    job.group.wait()  # nobody writes a newer checkpoint while another process still reads this one
    every = max(1, job.scale.steps // job.train.validations)
    started = saved = time.monotonic()
    first = 0
    for stage, count in plan:
        if at < first + count:
            method.train()
            method.set_stage(stage)
            if at == first and first > 0:
                ema.restart()
            with job.group.shared(method) as loss:
                for step in range(at, first + count):
                    rate = learning_rate(job.train, job.scale.lr, step - first, count)
                    parts = _step(job, loss, optimizer, step, rate)
                    ema.update()
                    at = step + 1
                    last = at == job.scale.steps
                    if not job.group.leads:
                        continue
                    if at % every == 0 or last:
                        _validate(job, ema, at, parts)
                        method.train()
                        method.set_stage(stage)
                    if time.monotonic() - saved > job.train.checkpoint_seconds and not last and at < first + count:
                        saved = time.monotonic()
                        meta = {"step": at, "ema_updates": ema.updates, "seconds": seconds + saved - started}
                        checkpoint.save_tensors(path, checkpoint.training_state(method, ema.shadow, optimizer), meta)
                    if at % 10 == 0 or last:
                        job.progress(f"train {stage}", at, job.scale.steps)
            # What later stages freeze or start from are the averaged weights.
            ema.copy_to_model()
            _calibrate(job)
            optimizer.state.clear()
        first += count
    method.eval()
    _calibrate(job)
    return {"train_seconds": seconds + time.monotonic() - started}


def _step(job: Job, loss: SharedLoss, optimizer: torch.optim.Optimizer, step: int, lr: float) -> dict[str, Tensor]:
    """One optimizer step on the mean of the parts' losses; each part has noise of its own, whoever computes it.

    A loss that is itself a mean over something that is drawn (masked positions) is averaged part by part all the same.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    train_NL = job.data.splits["train"]
    rows = batch_rows(len(train_NL), job.scale.batch, step, job.seed)
    x_BL = torch.from_numpy(np.asarray(train_NL[np.sort(rows)], dtype=np.int64)).to(job.numerics.device)
    optimizer.zero_grad(set_to_none=True)
    chunks = x_BL.chunk(job.train.accumulate)
    mine = job.group.parts(len(chunks))
    made: dict[int, Loss] = {}
    for part in mine:
        generator = step_generator(job.numerics.device, job.seed, 1, step, *([part] if part else []))
        with loss.part(last=part == mine[-1]):
            with job.numerics.autocast():
                made[part] = loss(chunks[part], generator)
            # Over the processes, the mean is taken where gradients are exchanged.
            (made[part].total / len(mine)).backward()
    parts = _together(job, made, len(chunks), step)
    torch.nn.utils.clip_grad_norm_(job.method.parameters(), job.train.clip)
    optimizer.step()
    return parts


def _together(job: Job, made: dict[int, Loss], count: int, step: int) -> dict[str, Tensor]:
    """Means of the named values over all parts; raises `Diverged`, in every process, if a part's loss is not finite."""
    names = list(next(iter(made.values())).parts)
    value_PK = torch.zeros((count, 1 + len(names)), dtype=torch.float64, device=job.numerics.device)
    for part, loss in made.items():
        value_PK[part] = torch.stack([v.detach().double() for v in (loss.total, *(loss.parts[n] for n in names))])
    job.group.add(value_PK)  # zeros where another process has the value
    for total in value_PK[:, 0].tolist():
        if not math.isfinite(total):
            raise Diverged(f"the loss is {total} at step {step + 1}; a smaller scale.lr (now {job.scale.lr}) may help")
    return dict(zip(names, value_PK[:, 1:].mean(0), strict=True))


def _calibrate(job: Job) -> None:
    """Statistics of the data under the current weights, from a fixed set of training sequences."""
    train_NL = job.data.splits["train"]
    rows = np.sort(batch_rows(len(train_NL), min(2048, len(train_NL)), 0, job.seed + 7919))
    x_NL = torch.from_numpy(np.asarray(train_NL[rows], dtype=np.int64)).to(job.numerics.device)
    with torch.no_grad(), job.numerics.autocast():
        job.method.calibrate(x_NL)


@torch.no_grad()
def _validate(job: Job, ema: EMA, step: int, parts: dict[str, Tensor]) -> None:
    """Append this step's training loss, and the bound and instruments on held-out text under averaged weights.

    A step that was written before a kill is left as it is: its values would be the same, its time would not.
    """
    path = job.folder / "curves.jsonl"
    known = next((line["values"] for line in read_jsonl(path) if line["step"] == step), None)
    if known is not None and job.on_validation is None:
        return
    job.method.eval()
    with ema.applied():
        values = known or {f"train/{name}": float(value) for name, value in parts.items()} | _held_out(job)
        if known is None:
            append_jsonl(path, {"step": step, "time_ms": int(time.time() * 1000), "values": values})
        if job.on_validation is not None:
            job.on_validation(step, values)


def _held_out(job: Job) -> dict[str, float]:
    """Bound and instruments on validation sequences, by the names that they have in the curves."""
    valid_NL = job.data.splits["valid"][: job.train.valid_sequences]
    x_NL = torch.from_numpy(np.asarray(valid_NL, dtype=np.int64)).to(job.numerics.device)
    values: dict[str, float] = {}
    with job.numerics.autocast():
        generator = step_generator(job.numerics.device, job.seed, 2, 0)
        bound = job.method.bound(x_NL, generator)
        if bound is not None:
            tokens = x_NL.shape[1]
            values["valid/bound_nats_per_token"] = float(bound.total_B.mean()) / tokens
            values |= {f"valid/bound/{k}": float(v.double().mean()) / tokens for k, v in bound.parts_B.items()}
        values |= {f"valid/{k}": float(v) for k, v in job.method.diagnose(x_NL, generator).items()}
    return values
