"""Checkpoints: one safetensors file with a JSON header, written atomically, so that it is whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from harness.errors import UserError
from harness.store import write_bytes
from harness.training.optimizer import Optimizer


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and JSON-able `meta`. Raises `UserError` on a full disk; the old file then stays."""
    plain = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
    write_bytes(path, save(plain, metadata={"harness": json.dumps(meta)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a checkpoint; `UserError` names a file that is cut short or not a checkpoint."""
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            meta = json.loads((file.metadata() or {})["harness"])
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}); delete this file and run the same command again to rebuild it"
        ) from error


def training_state(model: nn.Module, shadow: dict[str, Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of a training run under prefixed names: model (with buffers), average, optimizer moments."""
    out = {f"model/{k}": v for k, v in model.state_dict().items()}
    out |= {f"ema/{k}": v for k, v in shadow.items()}
    names = {id(p): k for k, p in model.named_parameters()}
    for parameter, moments in optimizer.state.items():
        out |= {f"optimizer/{names[id(parameter)]}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    return out


def restore_training_state(
    tensors: dict[str, Tensor],
    model: nn.Module,
    shadow: dict[str, Tensor],
    optimizer: Optimizer,
    path: Path,
) -> None:
    """Inverse of `training_state`; `UserError` where the checkpoint is of another model."""
    model_part = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    load_model(model, model_part, path)
    for name, value in shadow.items():
        value.copy_(tensors[f"ema/{name}"])
    parameters = dict(model.named_parameters())
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, moment = key.removeprefix("optimizer/").rsplit("/", 1)
            parameter = parameters[name]
            state.setdefault(parameter, {})[moment] = value.to(parameter.device)
    for parameter, moments in state.items():
        optimizer.state[parameter] = moments


def load_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights with every name and shape checked: silently unloaded weights give garbled samples."""
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    wrong = missing or unexpected or sorted(shapes)
    if wrong:
        raise UserError(
            f"checkpoint {path} is of another model (first difference: {wrong[0]}); delete this file and run the same "
            "command again to rebuild it"
        )
    model.load_state_dict(tensors)


def not_finite(model: nn.Module) -> str | None:
    """The name of a parameter that holds a value which is not finite; None if all are finite."""
    return next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
