"""Turns a Lightning file into a folder that `method=mdlm_checkpoint` reads: `python -m baselines.convert from=FILE to=FOLDER`.

Such a file is a pickle. It is unpacked by `torch.load(weights_only=True)`, which makes tensors and plain containers and runs
nothing of it; whatever else it names (a tokenizer, a configuration) becomes an empty `_Ignored`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from baselines.dit import DiT, DiTShape
from baselines.published import TABLE, fill, plain_names
from harness import cli
from harness.errors import UserError
from harness.nn.pretrained import first_line
from harness.store import write_atomically, write_text

_USAGE = """usage: python -m baselines.convert from=FILE to=FOLDER length=L time=true|false [ema=true|false]

Writes model.safetensors and config.json of a checkpoint of MDLM, Duo or SDTT that Lightning has written (.ckpt). Only its
tensors are read; no code that is in the file is run.

  from=FILE     the checkpoint
  to=FOLDER     what is written
  length=L      tokens of its training sequences: 1024 for OpenWebText, 128 for LM1B
  time=...      whether the noise level is an input: false for MDLM and SDTT, true for Duo
  ema=true      the averaged weights, which papers sample from; false: those of the last step
"""
_KEYS: dict[str, type] = {"from": str, "to": str, "length": int, "time": bool, "ema": bool}


class _Ignored:
    """What stands for every object of a file that is no tensor."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def main(words: list[str] | None = None) -> int:
    """Convert; the exit code (see `cli.main`)."""
    return cli.main(_run, lambda folders: _USAGE, words)


def _run(given: cli.Arguments) -> str:
    asked = cli.keyed(given.overrides, _KEYS, ("from", "to", "length", "time"))
    source, folder = Path(asked["from"]).expanduser(), Path(asked["to"]).expanduser()
    found, averaged = read_lightning(source, asked.get("ema", True))
    tensors = {name: tensor.detach().float().contiguous().clone() for name, tensor in found.items()}
    shape = shape_of(tensors, asked["length"], asked["time"])
    with torch.device("meta"):
        network = DiT(shape, shape.symbols, None)
    fill(network, tensors, source)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    write_atomically(folder / "model.safetensors", lambda file: save_file(named, file.name))
    config = {
        "vocab_size": shape.symbols, "hidden_dim": shape.width, "n_blocks": shape.depth, "n_heads": shape.heads,
        "cond_dim": shape.cond, "model_length": shape.length, "time_conditioning": shape.timed,
    }  # fmt: skip
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")
    kind = "averaged (ema)" if averaged else "last"
    return f"weights  {folder} ({kind}, {sum(t.numel() for t in tensors.values()):,} numbers)"


def read_lightning(path: Path, ema: bool = True) -> tuple[dict[str, Tensor], bool]:
    """The denoiser's tensors by plain names, and whether they are the averaged ones: those, where `ema` and the file has them.

    Raises `UserError` for a file that cannot be read so.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        ignored: list[Any] = [(_Ignored, name) for name in names]
        with torch.serialization.safe_globals(ignored):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - zip, pickle and torch each raise their own
        raise UserError(f"from={path} cannot be read as weights alone ({first_line(error)}); fetch it again") from error
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(f"from={path} has no state_dict, so it is no file of Lightning; give a .ckpt")
    inside = {name: t for name, t in state.items() if isinstance(t, Tensor) and not name.startswith("teacher")}
    tensors = plain_names(inside, path)
    average = content.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not ema or not shadow:
        if ema:
            print(f"{path} has no averaged weights: those of the last step are taken", file=sys.stderr, flush=True)
        return tensors, False
    # A list in the order of the parameters, which is that of the state dict; buffers are not among them.
    names = [name for name in tensors if not name.endswith("inv_freq")]
    if len(names) != len(shadow) or any(tensors[n].shape != t.shape for n, t in zip(names, shadow, strict=True)):
        raise UserError(
            f"from={path}: its {len(shadow)} averaged tensors are not in the order of its {len(names)} parameters; "
            "use ema=false for those of the last step"
        )
    return tensors | dict(zip(names, shadow, strict=True)), True


def shape_of(tensors: Mapping[str, Tensor], length: int, timed: bool) -> DiTShape:
    """The sizes that the tensors show; raises `UserError` where the rotary frequencies, which tell the heads, are not there."""
    symbols, width = tensors[TABLE].shape
    level, frequencies = tensors.get("sigma_map.mlp.0.weight"), tensors.get("rotary_emb.inv_freq")
    if level is None or frequencies is None:
        raise UserError(
            "from= has no sigma_map or rotary_emb, so its sizes cannot be told; give a checkpoint of MDLM or Duo"
        )
    depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
    return DiTShape(symbols, width, depth, width // (2 * len(frequencies)), len(level), length, timed)


if __name__ == "__main__":
    sys.exit(main())
