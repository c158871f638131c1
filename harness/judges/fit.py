"""Train the judge's network so that a run which was killed and started again ends with the same bits.

All randomness of step s comes from a generator seeded by (seed, s), and a checkpoint holds weights, both moments of
AdamW (Loshchilov and Hutter, 2019) and the step. On a GPU, and with another number of threads, bits may differ.

Shapes: T tokens of the stream, B windows of a batch, C tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.progress import counted
from harness.training import checkpoint
from harness.training.log import TrainingLog
from harness.training.optimizer import Optimizer, adamw, rate_at

_BETAS = (0.9, 0.95)
_FINAL_LR = 0.1  # of the peak
_LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights besides the network and the stream."""

    steps: int
    batch: int
    context: int
    lr: float
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    bfloat16: bool
    muon_lr: float = 0.0


def windows(stream_T: np.ndarray, recipe: Recipe, step: int) -> np.ndarray:
    """The batch (B, C) of a step: windows that start anywhere in the stream, drawn from (seed, step) alone."""
    size = min(recipe.context, len(stream_T))
    rng = np.random.default_rng([recipe.seed, step])
    start_B = rng.integers(0, len(stream_T) - size + 1, size=recipe.batch)
    return stream_T[start_B[:, None] + np.arange(size)].astype(np.int64)


def fit(
    model: Any,
    stream_T: np.ndarray,
    recipe: Recipe,
    path: Path,
    checkpoint_every: int,
    label: str,
    progress: Callable[[str], None],
) -> float:
    """Train `model`, a causal language model whose head is its embedding, in place; from the checkpoint `path` on where
    there is one of the same `label`. The curve is in `curves.jsonl` beside it.

    Returns the mean training loss (nats per token) of the last tenth of the steps, as far as this call ran them.
    Raises `UserError` where training diverges.
    """
    trunk: nn.Module = model.model  # it has all parameters: the head is the embedding
    optimizer = adamw(trunk, recipe.lr, _BETAS, recipe.weight_decay, lambda _, p: p.ndim > 1, recipe.muon_lr)
    first, kept = _restore(trunk, optimizer, path, label)
    curve = path.with_name("curves.jsonl")
    if first:
        progress(f"judge: goes on from step {first}/{recipe.steps}")
    else:
        curve.unlink(missing_ok=True)  # of another device, or of a checkpoint that is lost
    tokens = recipe.batch * min(recipe.context, len(stream_T))
    log = TrainingLog(curve, recipe.steps, tokens, first, kept)
    model.train()
    losses: list[float] = []
    for step in range(first, recipe.steps):
        rate = rate_at(step, recipe.steps, recipe.warmup, _FINAL_LR)
        optimizer.set_rate(rate)
        values = _step(model, optimizer, windows(stream_T, recipe, step), recipe)
        losses.append(values["loss"].item())
        at = step + 1
        if not math.isfinite(losses[-1]) or (at == recipe.steps and checkpoint.not_finite(trunk)):
            raise UserError(f"judge lr={recipe.lr} makes training diverge at step {at}; use {recipe.lr / 3:.2g}")
        log.add(values, rate * recipe.lr)
        if at % _LOG_EVERY == 0 or at == recipe.steps:
            log.write(at)
            progress(f"judge: {counted(f'train{log.words(at)}', at, recipe.steps)}")
        if at % checkpoint_every == 0 and at < recipe.steps:
            tensors = checkpoint.training_state(trunk, {}, optimizer) | log.state()
            checkpoint.save_tensors(path, tensors, {"label": label, "step": at})
    model.eval()
    return float(np.mean(losses[-max(1, recipe.steps // 10) :]))


def _step(model: Any, optimizer: Optimizer, window_BC: np.ndarray, recipe: Recipe) -> dict[str, Tensor]:
    ids_BC = torch.from_numpy(window_BC).to(model.device)
    with torch.autocast(ids_BC.device.type, torch.bfloat16, enabled=recipe.bfloat16):
        logits_BCV = model(input_ids=ids_BC, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits_BCV[:, :-1].flatten(0, 1).float(), ids_BC[:, 1:].flatten())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), "gradient_norm": norm}


def _restore(trunk: nn.Module, optimizer: Optimizer, path: Path, label: str) -> tuple[int, dict[str, Tensor]]:
    """The step to go on from and the checkpoint; 0 where there is none, or one that is damaged or of another label."""
    if not path.is_file():
        return 0, {}
    try:
        tensors, meta = checkpoint.load_tensors(path)
        if meta.get("label") != label:
            return 0, {}
        checkpoint.restore_training_state(tensors, trunk, {}, optimizer, path)
    except UserError:  # damaged: nothing is lost but time
        return 0, {}
    return meta["step"], tensors
