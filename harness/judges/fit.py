"""Train the judge's network so that a run which was killed and started again ends with the same bits.

All randomness of step s comes from a generator seeded by (seed, s), and a checkpoint holds weights, both moments of
AdamW (Loshchilov and Hutter, 2019) and the step. On a GPU, and with another number of threads, bits may differ.

Shapes: T tokens of the stream, B windows of a batch, C tokens of a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from harness.data.files import write_atomically
from harness.errors import UserError

_BETAS = (0.9, 0.95)
_FINAL_LR = 0.1  # of the peak
_SAY_EVERY_S = 10.0


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


def windows(stream_T: np.ndarray, recipe: Recipe, step: int) -> np.ndarray:
    """The batch (B, C) of a step: windows that start anywhere in the stream, drawn from (seed, step) alone."""
    size = min(recipe.context, len(stream_T))
    rng = np.random.default_rng([recipe.seed, step])
    start_B = rng.integers(0, len(stream_T) - size + 1, size=recipe.batch)
    return stream_T[start_B[:, None] + np.arange(size)].astype(np.int64)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up to the peak, then a cosine to a tenth of it at the last step."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (_FINAL_LR + (1.0 - _FINAL_LR) * 0.5 * (1.0 + math.cos(math.pi * done)))


def fit(
    model: nn.Module,
    stream_T: np.ndarray,
    recipe: Recipe,
    checkpoint: Path,
    checkpoint_every: int,
    label: str,
    progress: Callable[[str], None],
) -> float:
    """Train `model` in place from its initial weights, or from `checkpoint` where there is one of the same `label`.

    Returns the mean training loss (nats per token) of the last tenth of the steps, as far as this call ran them.
    Raises `UserError` where training diverges.
    """
    device = next(model.parameters()).device
    named = dict(model.named_parameters())
    matrices = [p for p in named.values() if p.ndim > 1]
    vectors = [p for p in named.values() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=_BETAS,
        fused=True,
    )
    first = _restore(named, optimizer, checkpoint, label)
    if first:
        progress(f"judge: goes on from step {first}/{recipe.steps}")
    model.train()
    began = said = time.monotonic()
    losses: list[float] = []
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        ids_BC = torch.from_numpy(windows(stream_T, recipe, step)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits_BCV = model(input_ids=ids_BC, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits_BCV[:, :-1].flatten(0, 1).float(), ids_BC[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(named.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"judge lr={recipe.lr} makes training diverge at step {step + 1}; use {recipe.lr / 3:.2g}")
        if (step + 1) % checkpoint_every == 0 and step + 1 < recipe.steps:
            _keep(named, optimizer, checkpoint, label, step + 1)
        now = time.monotonic()
        if now - said >= _SAY_EVERY_S or step + 1 == recipe.steps:
            said = now
            left = (now - began) / len(losses) * (recipe.steps - step - 1)
            recent = float(np.mean(losses[-50:]))
            progress(f"judge: step {step + 1}/{recipe.steps}, loss {recent:.3f} nats/token, {left:.0f} s left")
    model.eval()
    return float(np.mean(losses[-max(1, recipe.steps // 10) :]))


def _keep(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, path: Path, label: str, step: int) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for part, value in optimizer.state[parameter].items():
            tensors[f"{part}/{name}"] = value.detach().cpu().contiguous()
    content = save(tensors, metadata={"label": label, "step": str(step)})
    write_atomically(path, lambda file: file.write(content))


def _restore(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, path: Path, label: str) -> int:
    """The step to go on from; 0 where there is no checkpoint, or one that is damaged or of another label."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            if found.get("label") != label:
                return 0
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError):
        return 0
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[f"weight/{name}"])
            optimizer.state[parameter] = {
                # AdamW keeps the step in float32 on the parameter's device when fused.
                part: tensors[f"{part}/{name}"].to(parameter.device)
                for part in ("step", "exp_avg", "exp_avg_sq")
            }
    return int(found["step"])
