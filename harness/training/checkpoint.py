"""Checkpoints: one safetensors file with a JSON header, written atomically, so that it is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.store import Damaged, sealed, unsealed, write_atomically
from harness.training.optimizer import Optimizer
from harness.training.shards import like, whole

#: In the file's facts: names of tensors that are another one's too, by name.
_TWINS = "twins"


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` with their hash, and JSON-able `meta` with its own; a tensor that has several names, as tied weights
    have, is written once.

    Raises `UserError` on a full disk; the old file then stays.
    """
    written: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    twins: dict[str, str] = {}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        first = names.setdefault((tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        if first != name:
            twins[name] = first
            continue
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        written[name] = plain.clone() if memory in memories else plain  # a part of another one
        memories.add(memory)
    header = {"harness": json.dumps(sealed(meta | ({_TWINS: twins} if twins else {}))), "sha256": _hash_of(written)}
    # The library writes to the file that is kept for it, so that no copy of all tensors is made in memory.
    write_atomically(path, lambda file: save_file(written, file.name, metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a checkpoint; `Damaged` names a file that is cut short, altered or not a checkpoint."""
    tensors, meta, _ = load_hashed(path)
    return tensors, meta


def load_hashed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """As `load_tensors`, with the hash of the tensors."""
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            written = file.metadata() or {}
            if not written.keys() >= {"harness", "sha256"}:
                raise ValueError("it is no checkpoint of ours")
            meta, digest = unsealed(written["harness"]), written["sha256"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if _hash_of(tensors) != digest:
            raise ValueError("its content has another hash")
        return tensors | {name: tensors[first] for name, first in meta.pop(_TWINS, {}).items()}, meta, digest
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(path, " ".join(str(error).split()) or type(error).__name__) from error


def hash_in(path: Path) -> str:
    """The hash of the tensors as the file states it; they are not read. "" where there is no such file."""
    if not Path(path).exists():
        return ""
    with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
        return (file.metadata() or {}).get("sha256", "")


def _hash_of(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


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
        value.copy_(like(tensors[f"ema/{name}"], value))
    parameters = dict(model.named_parameters())
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, moment = key.removeprefix("optimizer/").rsplit("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter).copy_(like(value, parameter))
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
    model.load_state_dict({name: like(tensor, own[name]) for name, tensor in tensors.items()})


def not_finite(model: nn.Module) -> str | None:
    """The name of a parameter that holds a value which is not finite; None if all are finite."""
    return next((name for name, p in model.named_parameters() if not torch.isfinite(whole(p)).all()), None)
