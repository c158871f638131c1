"""Published checkpoints as methods: MDLM, SDTT and their kin with masks, Duo and its distilled form with uniform noise.

Nothing is trained. The samplers are those of MDLM and UDLM, on a denoiser of the published arithmetic (`baselines.dit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.dit import DiT
from baselines.mdlm import MDLM
from baselines.published import (
    INSTEAD,
    KEY,
    TABLE,
    Known,
    files_of,
    fill,
    known_as,
    read_shape,
    read_tensors,
    sha256_of,
)
from baselines.udlm import UDLM, UDLMReading
from harness.config.fields import chosen, ranged
from harness.diffusion.schedules import TOKEN_SCHEDULES
from harness.errors import UserError
from harness.interface import Loss, Method, Stage


@dataclass
class CheckpointOptions:
    path: str = ""  # folder, .safetensors file or repository on the hub; empty: the repository of the entry
    entry: str = ""  # whose facts in baselines/published.yaml apply; empty: those of the repository, if it is there
    revision: str | None = None  # commit or branch on the hub; null: the one of the entry, or else the newest
    mask_id: int | None = ranged(None, 0)  # row of the mask in its table; null: that of the entry, or else the last


@dataclass
class MaskedCheckpointOptions(CheckpointOptions):
    schedule: str = chosen("linear", TOKEN_SCHEDULES)


@dataclass
class UniformCheckpointOptions(CheckpointOptions, UDLMReading):
    """What the network's output is taken for as well."""


class Checkpoint(Method):
    """Before a method that asks `make_network` for its network, among the bases of a class; `process` is what it samples by."""

    process = ""
    other = ""

    @classmethod
    def files_key(cls, node: Mapping[str, Any]) -> str:
        files = _files(node["path"], node["revision"], known_as(node["entry"], node["path"]))
        return "-".join(map(sha256_of, files))

    def make_network(self) -> Any:
        """The denoiser with the weights of the file; raises `UserError` where file, manifest and data do not go together."""
        o = self.options
        known = known_as(o.entry, o.path)
        if known and known.process != self.process:
            raise UserError(f"{KEY}={o.path or known.path}: its noise is {known.process}; use method={self.other}")
        config, weights = _files(o.path, o.revision, known)
        tensors = read_tensors(weights)
        shape = read_shape(config, len(tensors[TABLE]))
        if self.problem.length != shape.length:
            raise UserError(
                f"{KEY}={weights}: was trained on {shape.length} tokens; use scale.length={shape.length}, "
                f"not {self.problem.length}"
            )
        with torch.device("meta"):
            network = DiT(shape, self.problem.vocab_size, self._mask(shape.symbols, known, weights))
        fill(network, tensors, weights)
        self.title = known.title if known else f"{weights.parent.name} ({self.process})"
        self.printed = known.printed if known else {}
        self.printed_in = known.printed_in if known else ""
        return network

    def _mask(self, symbols: int, known: Known | None, weights: Path) -> int | None:
        """Row of the mask in a table of `symbols` rows; None for a process without one."""
        o, V = self.options, self.problem.vocab_size
        if symbols not in (V, V + 1):
            tokenizer = f" such as {known.tokenizer}" if known else ""
            raise UserError(
                f"{KEY}={weights}: its table has {symbols} symbols, and the data {V}; use the tokenizer that it was trained "
                f"with{tokenizer}"
            )
        if self.process != "masked":
            return None
        asked = o.mask_id if o.mask_id is not None else known.mask_id if known else None
        if symbols == V and asked is None:
            raise UserError(
                f"{KEY}={weights}: the data have all of its {symbols} symbols, so one of them is the mask; "
                "say which, mask_id=103 for bert-base-uncased"
            )
        if asked is not None and (asked >= symbols or (symbols > V and asked != V)):
            raise UserError(f"{KEY}={weights}: mask_id={asked}: use {V if symbols > V else f'0 to {V - 1}'}")
        return V if asked is None else asked

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        return Method.loss(self, x_BL, generator)


def _files(path: str, revision: str | None, known: Known | None) -> tuple[Path, Path]:
    """config.json and weights; those of the repository have to be the ones that are known. Raises `UserError`."""
    if known is None or path not in ("", known.path):
        if not path:
            raise UserError(f"{KEY}= is empty; {INSTEAD}")
        return files_of(path, revision)
    config, weights = files_of(known.path, revision or known.revision)
    if known.sha256 not in (None, sha256_of(weights)):
        raise UserError(
            f"{KEY}={known.path}: {weights.name} has the SHA-256 {sha256_of(weights)[:12]}, and the one that is known "
            f"{str(known.sha256)[:12]}; fetch it again, or give its folder as path="
        )
    return config, weights


class MaskedCheckpoint(Checkpoint, MDLM):
    """MDLM's and SDTT's layout, read as a masked model."""

    Options = MaskedCheckpointOptions
    process, other = "masked", "duo_checkpoint"


class UniformCheckpoint(Checkpoint, UDLM):
    """The same layout in Duo's hands; its output is the x0 of the published posterior, which is the leave-one-out reading."""

    Options = UniformCheckpointOptions
    process, other = "uniform", "mdlm_checkpoint"
