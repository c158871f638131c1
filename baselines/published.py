"""Published checkpoints as files: where they are, what their configuration says, and their tensors under plain names.

A checkpoint is a folder (or a repository of the hub) with config.json and one safetensors file. Both forms of config.json are
read: flat, as `transformers` writes it, and nested, with a section `model`. Every tensor has to be there, with its shape, and
none may be there that the network has no place for. `published.yaml` says what is known of some of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from baselines.dit import DiT, DiTShape
from harness.errors import UserError, nearest
from harness.nn.pretrained import first_line, guarded, locate
from harness.nn.transformer import rotary_table

KEY = "checkpoint path"
INSTEAD = "give a folder with config.json and model.safetensors, or the name of a repository on the hub"
TABLE = "vocab_embed.embedding"
_FREQUENCIES = "rotary_emb.inv_freq"
#: Names of a size in the flat form and in the nested one.
_SIZES = {
    "width": ("hidden_dim", "hidden_size"),
    "depth": ("n_blocks",),
    "heads": ("n_heads",),
    "cond": ("cond_dim",),
    "length": ("model_length", "length"),
}


@dataclass(frozen=True)
class Known:
    """An entry of `published.yaml`; `printed` are its paper's numbers by column and NFE, `printed_in` says where."""

    path: str
    process: str
    tokenizer: str
    length: int
    licence: str
    title: str
    traps: tuple[str, ...]
    revision: str | None = None
    sha256: str | None = None
    mask_id: int | None = None
    printed: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    printed_in: str = ""


@functools.cache
def manifest() -> dict[str, Known]:
    """What is known of published checkpoints, by name."""
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    return {name: Known(**entry | {"traps": tuple(entry["traps"])}) for name, entry in yaml.safe_load(text).items()}


def files_of(path: str, revision: str | None) -> tuple[Path, Path]:
    """config.json and the safetensors file of a checkpoint, fetched where it is on the hub; raises `UserError`."""
    given = Path(path)
    if given.is_file():
        if given.suffix != ".safetensors":
            raise UserError(
                f"{KEY}={path} is no safetensors file; convert it once: python -m baselines.convert from={path} to=FOLDER"
            )
        if not (given.parent / "config.json").is_file():
            raise UserError(f"{KEY}={path} has no config.json beside it; {INSTEAD}")
        return given.parent / "config.json", given
    where = locate(path, revision, KEY, INSTEAD)
    folder = given
    if not given.is_dir():
        from huggingface_hub import snapshot_download

        with guarded(KEY, path, INSTEAD):
            folder = Path(snapshot_download(path, allow_patterns=["config.json", "*.safetensors"], **where))
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{KEY}={path} has {len(found)} safetensors files ({names}); name one of them")
    return folder / "config.json", found[0]


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, read once in a process."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def read_shape(config: Path, symbols: int) -> DiTShape:
    """The sizes that a config.json names, of a table of `symbols` rows; raises `UserError` for one that is not there."""
    try:
        tree = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read ({first_line(error)}); {INSTEAD}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{config} is no mapping of names to values; {INSTEAD}")
    flat = {**tree, **_mapping(tree.get("model"))}
    sizes = {}
    for name, keys in _SIZES.items():
        value = next((flat[key] for key in keys if key in flat), None)
        if type(value) is not int or value < 1:
            raise UserError(f"{config}: {keys[0]}={value}: must be a whole number above 0")
        sizes[name] = value
    timed = tree.get("time_conditioning", _mapping(tree.get("algo")).get("time_conditioning"))
    if type(timed) is not bool:
        raise UserError(f"{config}: time_conditioning={timed}: must be true or false")
    if sizes["width"] % (2 * sizes["heads"]):
        raise UserError(f"{config}: a width of {sizes['width']} is no multiple of 2 x {sizes['heads']} heads")
    if tree.get("vocab_size", symbols) != symbols:
        raise UserError(f"{config}: vocab_size={tree['vocab_size']}: its table {TABLE} has {symbols} rows")
    return DiTShape(symbols, timed=timed, **sizes)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def plain_names(tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Tensors of the denoiser by the names that it gives them itself: what stands before (`backbone.`) is cut off.

    Raises `UserError` where there is no table of embeddings, so that it is no checkpoint of this layout.
    """
    names = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}  # torch.compile's
    prefix = next((name.removesuffix(TABLE) for name in names if name.endswith(TABLE)), None)
    if prefix is None:
        raise UserError(
            f"{KEY}={path} has no tensor {TABLE}: it is of another layout; those of MDLM, Duo and SDTT are read"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in names.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by plain names; raises `UserError`."""
    try:
        return plain_names(load_file(path), path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{KEY}={path} cannot be read ({first_line(error)}); fetch it again") from error


def fill(network: DiT, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Put the tensors into the network as float32; raises `UserError` for the first that is missing, foreign or misshapen."""
    own = dict(network.state_dict())
    given = {name: tensor for name, tensor in tensors.items() if name != _FREQUENCIES}
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing:
        raise UserError(
            f"{KEY}={path} lacks {len(missing)} of its tensors, first {missing[0]}; it would be random: fetch it again"
        )
    if foreign:
        raise UserError(f"{KEY}={path} has {len(foreign)} tensors of another model, first {foreign[0]}; {INSTEAD}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{KEY}={path}: {name} has the shape {tuple(tensor.shape)}, and by its config.json {tuple(own[name].shape)}"
            )
    _check_frequencies(network.shape, tensors.get(_FREQUENCIES), path)
    network.load_state_dict({name: tensor.float() for name, tensor in given.items()}, assign=True)
    network.requires_grad_(False)


def _check_frequencies(shape: DiTShape, found_F: Tensor | None, path: str | Path) -> None:
    """Rotary frequencies are kept in the file: they tell the number of heads, and the base."""
    if found_F is None:
        return
    rate_F = torch.atan2(*reversed(rotary_table(torch.ones(1), shape.width // shape.heads)))[0]
    if found_F.shape != rate_F.shape or not torch.allclose(found_F.float(), rate_F, rtol=1e-3):
        heads = shape.width // (2 * max(1, len(found_F)))
        raise UserError(
            f"{KEY}={path}: {_FREQUENCIES} is not that of {shape.heads} heads at base 10000; by its length there are {heads}"
        )


def known_as(name: str, path: str) -> Known | None:
    """The entry of the manifest of that name, or (without one) of that repository; raises `UserError` for an unknown name."""
    entries = manifest()
    if name and name not in entries:
        raise UserError(f"checkpoint entry={name}: is unknown{nearest(name, entries)}")
    return entries[name] if name else next((entry for entry in entries.values() if entry.path == path), None)
