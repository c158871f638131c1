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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.config.schema import ScaleConfig, TrainConfig
from harness.data.base import TokenData
from harness.errors import JobError
from harness.interface import Loss, Method
from harness.nn.transformer import recompute_blocks
from harness.training import checkpoint
from harness.training.batches import batch_rows, read_ahead
from harness.training.distributed import Group, SharedLoss
from harness.training.ema import EMA
from harness.training.log import TrainingLog
from harness.training.optimizer import Optimizer, learning_rate, method_optimizer
from harness.training.precision import Numerics
from harness.training.seeds import step_generator
from harness.training.shards import gathered, whole


class Diverged(JobError):
    """The loss or the weights are not finite any more; the cell stops, the study goes on."""


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


def train(job: Job) -> dict[str, float]:
    """Train to the end and leave the averaged weights in `job.method`; returns the facts of the run.

    Raises `Diverged` on a loss or weights that are not finite, `UserError` for a corrupt checkpoint.
    """
    run, first = _Run(job), 0
    for stage, count in stage_steps(job.method, job.scale.steps):
        if run.at < first + count:
            run.stage(stage, first, count)
        first += count
    job.method.eval()
    _calibrate(job)
    bad = checkpoint.not_finite(job.method)
    if bad:
        raise Diverged(f"{bad} is not finite after step {first}; {_way_out(job)}")
    return {"train_seconds": run.seconds()}


class _Run:
    """A training under way: what goes into its checkpoint, and how far it is (`at` steps are done)."""

    def __init__(self, job: Job) -> None:
        self.job = job
        job.method.to(job.numerics.device)
        recompute_blocks(job.method, job.numerics.recompute)
        job.group.divide(job.method)
        self.optimizer = method_optimizer(job.method, job.scale, job.train)
        self.ema = EMA(job.method, job.train.ema)
        self.path = job.folder / "train.safetensors"
        self.at, self._before = 0, 0.0
        tensors: dict[str, Tensor] = {}
        if self.path.exists():
            tensors, meta = checkpoint.load_tensors(self.path)
            checkpoint.restore_training_state(tensors, job.method, self.ema.shadow, self.optimizer, self.path)
            self.at, self.ema.updates, self._before = meta["step"], meta["ema_updates"], meta["seconds"]
        job.group.wait()  # nobody writes a newer checkpoint while another process still reads this one
        steps, tokens = job.scale.steps, job.scale.batch * job.data.length
        self.log = TrainingLog(job.folder / "curves.jsonl", steps, tokens, self.at, tensors)
        self.validations = validation_steps(steps, job.train.validations)
        self._started = self._saved = time.monotonic()
        self._cost = 0.0  # seconds that the last checkpoint took
        self._unread: list[tuple[int, Tensor]] = []  # losses of steps that nobody has looked at
        self._read = False  # whether those up to the last step were looked at

    def seconds(self) -> float:
        """Seconds of training so far, those before a kill included."""
        return self._before + time.monotonic() - self._started

    def stage(self, stage: str, first: int, count: int) -> None:
        """The steps of a stage that are left; it began after `first` steps and has `count`."""
        job = self.job
        job.method.train()
        job.method.set_stage(stage)
        if self.at == first and first > 0:
            self.ema.restart()
        with job.group.shared(job.method) as loss:
            steps = range(self.at, first + count)
            for step, tokens in read_ahead(partial(_read, job), steps, job.numerics.device):
                rate = learning_rate(job.train, step - first, count)
                self.optimizer.set_rate(rate)
                job.method.largest_time = largest_time(job.train, step - first, count)
                watch = partial(self._watch, step + 1, step + 1 == first + count)
                values = _step(job, loss, self.optimizer, step, tokens, watch)
                self.ema.update()
                self.at = step + 1
                if job.group.leads:
                    self.log.add(values, rate * job.scale.lr)
                if job.group.leads or job.group.shard:  # weights that are cut are read by all
                    self._report(stage)
                    self._keep(first + count)
                if job.group.leads and (self.at % 10 == 0 or self.at == job.scale.steps):
                    job.progress(f"train {stage}{self.log.words(self.at)}", self.at, job.scale.steps)
        # What later stages freeze or start from are the averaged weights.
        self.ema.copy_to_model()
        _calibrate(job)
        self.optimizer.state.clear()

    def _watch(self, step: int, last: bool, loss: Tensor) -> None:
        """Raise `Diverged`, in every process, if the loss of a step was not finite.

        To read it waits for the device, so that it is read every few steps, and before anything is kept or measured.
        """
        self._unread.append((step, loss))
        self._read = last or step % _read_every(self.job.numerics.device) == 0 or step in self.validations
        if self._read:
            read, self._unread = self._unread, []
            for (at, _), value in zip(read, torch.stack([value for _, value in read]).tolist(), strict=True):
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {at}; {_way_out(self.job)}")

    def _report(self, stage: str) -> None:
        """The line of this step in the curves, where it has one; validations are made under averaged weights."""
        job = self.job
        if self.at in self.validations:
            job.method.eval()
            # They cost as much as many steps, and only show: half-way and at the end is enough.
            instruments = self.at in (self.validations[(len(self.validations) - 1) // 2], job.scale.steps)
            # Another batch and no gradient would be compiled anew.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), self.ema.applied():
                held_out = _held_out(job, instruments) if job.group.shard else None
                values = dict[str, float]()
                if job.group.leads:
                    values = self.log.write(self.at, lambda: held_out or _held_out(job, instruments))
                if job.on_validation is not None:
                    job.on_validation(self.at, values)
            job.method.train()
            job.method.set_stage(stage)
        elif self.at % job.train.log_every == 0 and job.group.leads:
            self.log.write(self.at)

    def _keep(self, end: int) -> None:
        """Write the checkpoint if it is time to; none at the end of a stage, where weights are about to change."""
        now, recipe = time.monotonic(), self.job.train
        wait = max(recipe.checkpoint_seconds, self._cost / recipe.checkpoint_share - self._cost)
        due, group = now - self._saved > wait, self.job.group
        if self._read and self.at < end and group.agrees(due, self.job.numerics.device):
            tensors = checkpoint.training_state(self.job.method, self.ema.shadow, self.optimizer)
            tensors = gathered(tensors, group.leads)
            if not group.leads:
                return
            meta = {"step": self.at, "ema_updates": self.ema.updates, "seconds": self.seconds()}
            checkpoint.save_tensors(self.path, tensors | self.log.state(), meta)
            self._saved = time.monotonic()
            self._cost = self._saved - now


def _read_every(device: str) -> int:
    """Steps between looks at the loss; on a CPU nothing waits."""
    return 1 if device == "cpu" else 10


def largest_time(train: TrainConfig, step: int, steps: int) -> float:
    """The largest time of the tokens in step `step` of a stage of `steps`: from 0.3 to 1 in the share `train.mask_growth`.

    With few masks the neighbours of a masked token are shown, and what can be learnt from them is learnt first.
    """
    growing = train.mask_growth * steps
    return min(1.0, 0.3 + 0.7 * step / growing) if growing else 1.0


def validation_steps(steps: int, count: int) -> list[int]:
    """After which steps the held-out bound is measured: `count` times, evenly, and at the end."""
    every = max(1, steps // count)
    return [*range(every, steps, every), steps]


def _step(
    job: Job,
    loss: SharedLoss,
    optimizer: Optimizer,
    step: int,
    tokens: dict[int, Tensor],
    watch: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """One optimizer step on the mean of the losses of the parts `tokens`; each has noise of its own, whoever computes it.

    Returns the step's loss, its named parts and the norm of the gradient before it is clipped, still on the device; `watch`
    is told the loss before the weights move.

    A loss that is itself a mean over something that is drawn (masked positions) is averaged part by part all the same.
    """
    job.method.zero_grad(set_to_none=True)
    made: dict[int, Loss] = {}
    for part, read_BL in tokens.items():
        generator = step_generator(job.numerics.device, job.seed, 1, step, *([part] if part else []))
        x_BL = read_BL.to(job.numerics.device, non_blocking=True)
        with loss.part(last=len(made) + 1 == len(tokens)):
            with job.numerics.autocast():
                made[part] = loss(x_BL, generator)
            # Over the processes, the mean is taken where gradients are exchanged.
            (made[part].total / len(tokens)).backward()
    values = _together(job, made, job.train.accumulate)
    watch(values["loss"])
    values["gradient_norm"] = whole(torch.nn.utils.clip_grad_norm_(job.method.parameters(), job.train.clip))
    optimizer.step()
    return values


def _read(job: Job, step: int) -> dict[int, Tensor]:
    """Tokens (B, L) int64 of each part of a step that is this process's; what a GPU is busy with does not hold up its copy."""
    train_NL = job.data.splits["train"]
    rows_PB = np.sort(batch_rows(len(train_NL), job.scale.batch, step, job.seed)).reshape(job.train.accumulate, -1)
    parts = job.group.parts(len(rows_PB))
    read = {part: torch.from_numpy(np.asarray(train_NL[rows_PB[part]], dtype=np.int64)) for part in parts}
    on_gpu = job.numerics.device.startswith("cuda")
    return {part: x_BL.pin_memory() if on_gpu else x_BL for part, x_BL in read.items()}


def _together(job: Job, made: dict[int, Loss], count: int) -> dict[str, Tensor]:
    """Means of the loss and its named parts over all parts of the batch, the same in every process."""
    names = list(next(iter(made.values())).parts)
    value_PK = torch.zeros((count, 1 + len(names)), dtype=torch.float64, device=job.numerics.device)
    for part, loss in made.items():
        value_PK[part] = torch.stack([v.detach().double() for v in (loss.total, *(loss.parts[n] for n in names))])
    job.group.add(value_PK)  # zeros where another process has the value
    return dict(zip(("loss", *names), value_PK.mean(0), strict=True))


def _way_out(job: Job) -> str:
    muon = f" or train.muon_lr (now {job.train.muon_lr})" if job.train.optimizer == "muon" else ""
    return f"a smaller scale.lr (now {job.scale.lr}){muon} may help"


def _calibrate(job: Job) -> None:
    """Statistics of the data under the current weights, from a fixed set of training sequences."""
    train_NL = job.data.splits["train"]
    rows = np.sort(batch_rows(len(train_NL), min(2048, len(train_NL)), 0, job.seed + 7919))
    x_NL = torch.from_numpy(np.asarray(train_NL[rows], dtype=np.int64)).to(job.numerics.device)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), job.numerics.autocast():
        job.method.calibrate(x_NL)


def _held_out(job: Job, instruments: bool) -> dict[str, float]:
    """Bound and, if asked for, instruments on validation sequences, by the names that they have in the curves."""
    x_NL = torch.from_numpy(job.data.some("valid", job.train.valid_sequences)).to(job.numerics.device)
    values: dict[str, float] = {}
    with job.numerics.autocast():
        generator = step_generator(job.numerics.device, job.seed, 2, 0)
        bound = job.method.bound(x_NL, generator)
        if bound is not None:
            tokens = x_NL.shape[1]
            values["valid/bound_nats_per_token"] = float(bound.total_B.mean()) / tokens
            values |= {f"valid/bound/{k}": float(v.double().mean()) / tokens for k, v in bound.parts_B.items()}
        if instruments:
            values |= {f"valid/{k}": float(v) for k, v in job.method.diagnose(x_NL, generator).items()}
    return values
