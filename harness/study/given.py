"""Samples of somebody else as rows of a study: read from a file, checked line by line, and scored like any others.

A line of `.jsonl` is an object with `ids` of this study's tokenizer, or `text`, or both; a line of `.txt` is a text. Texts get
their ids from the study's tokenizer, and what is scored is the text of these ids, as it is for every sampler.

Shapes: N samples, L tokens, V symbols.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import NoOptions, ranged
from harness.data.base import TokenData
from harness.errors import UserError
from harness.interface import Callless, Draw, Method, Problem, Stage
from harness.training import checkpoint

_SHOWN = 3


class Unfit(ValueError):
    """Why a line cannot be scored."""


@dataclass(frozen=True)
class Lines:
    """Ids (N, L) of the lines that can be scored; the others as (number, reason); and what is to be known of the texts."""

    x_NL: np.ndarray
    unfit: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]

    def told(self, path: Path) -> str:
        """Which lines cannot be scored and why, the first few of them."""
        shown = "; ".join(f"line {number} {reason}" for number, reason in self.unfit[:_SHOWN])
        more = len(self.unfit) - _SHOWN
        return f"{path}: {len(self.unfit)} of {len(self.unfit) + len(self.x_NL)} lines cannot be scored: {shown}" + (
            f"; and {more} more" if more > 0 else ""
        )


def read_lines(path: Path, data: TokenData, cut: bool = False) -> Lines:
    """The samples of a file, each checked; with `cut` the tokens of a text beyond the L-th are cut off, and said to be.

    Raises `UserError` for a file that cannot be read or has no line.
    """
    rows, unfit, encoded, changed, long = list[np.ndarray](), list[tuple[int, str]](), 0, list[int](), 0
    for number, line in _numbered(path):
        try:
            text, ids_L = _parsed(line, path.suffix == ".jsonl", data)
            if ids_L is None:
                ids_L = _encoded(text, data)
                encoded += 1
                changed += [number] if data.decode(ids_L.tolist()) != text else []
                if cut and len(ids_L) > data.length:
                    ids_L, long = ids_L[: data.length], long + 1
            if len(ids_L) != data.length:
                raise Unfit(f"has {len(ids_L)} tokens, and a sample has {data.length}")
            rows.append(ids_L)
        except Unfit as error:
            unfit.append((number, str(error)))
    if not rows and not unfit:
        raise UserError(f"{path} is empty; give a file with a sample on each line")
    notes = []
    if encoded:
        name = data.facts.get("tokenizer", "the study's tokenizer")
        notes.append(f"{path}: {encoded} lines without ids; their entropy is over the tokens of {name}")
    if changed:
        notes.append(
            f"{path}: {len(changed)} texts are not what the tokenizer gives back (the first: line {changed[0]}); that is scored"
        )
    if long:
        notes.append(f"{path}: {long} texts are cut after {data.length} tokens")
    x_NL = np.array(rows, dtype=np.int64).reshape(len(rows), data.length)
    return Lines(x_NL, tuple(unfit), tuple(notes))


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) from 1; a last newline ends the last line."""
    if path.suffix not in (".jsonl", ".txt"):
        raise UserError(f"samples={path}: has an unknown ending; give lines of JSON (.jsonl) or of text (.txt)")
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"samples={path} cannot be read ({error.strerror}); give a file of samples") from error
    except UnicodeDecodeError as error:
        raise UserError(f"samples={path} is no UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    yield from enumerate(content.removesuffix("\n").split("\n") if content else [], start=1)


def _parsed(line: str, is_json: bool, data: TokenData) -> tuple[str, np.ndarray | None]:
    """Text and ids (None: there are none) of a line; raises `Unfit`."""
    if not line.strip():
        raise Unfit("is empty")
    if not is_json:
        return line, None
    try:
        record = json.loads(line)
    except ValueError as error:
        raise Unfit(f"is not JSON ({error})") from error
    if not isinstance(record, dict) or not {"text", "ids"} & record.keys():
        raise Unfit("has neither text nor ids")
    text, ids = record.get("text"), record.get("ids")
    if not isinstance(text, str | None):
        raise Unfit("has a text that is none")
    if ids is None:
        if not text or not text.strip():
            raise Unfit("has an empty text")
        return text, None
    whole = isinstance(ids, list) and all(type(i) is int and 0 <= i < data.vocab_size for i in ids)
    if not whole:
        raise Unfit(f"has ids that are not whole numbers from 0 to {data.vocab_size - 1}")
    if text is not None and data.decode(ids) != text:
        raise Unfit("has ids that are not those of its text under this tokenizer; leave them out")
    return text or "", np.array(ids, dtype=np.int64)


def _encoded(text: str, data: TokenData) -> np.ndarray:
    if data.encode is None:
        raise Unfit(f"has no ids, and data {data.name} have no tokenizer")
    return np.asarray(data.encode([text])[0], dtype=np.int64)


# ---- as a method and its sampler ------------------------------------------------------------------------------------
@dataclass
class GivenOptions:
    """A file of checked ids; `digest` changes with them."""

    path: str = ""
    digest: str = ""
    title: str = ""
    nfe: int = ranged(0, 0)  # calls that each sample took, as its maker says; 0: not known


class Given(Method):
    """Samples that were made elsewhere: nothing is trained, and nothing is known of what drew them."""

    Options = GivenOptions
    role = "reference"

    def __init__(self, problem: Problem, options: GivenOptions) -> None:
        super().__init__(problem, options)
        self.title = options.title

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> None:
        return None


class AsGiven(Callless):
    """The samples of the file in their order, all in one draw; no network is called."""

    Options = NoOptions
    methods = Given
    method: Given
    bounded = False

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        tensors, _ = checkpoint.load_tensors(Path(self.method.options.path))
        return Draw(
            tensors["x_NL"][:n].to(generator.device), nfe_latent=0, nfe_token=0, stated=self.method.options.nfe or None
        )


def as_rows(files: Mapping[str, np.ndarray], calls: Mapping[str, int], folder: Path) -> dict[str, Any]:
    """`methods` of a configuration, by name, for ids (N, L) that are written to `folder` first; `calls` are their NFE."""
    found = {}
    for name, x_NL in files.items():
        path = folder / f"{name}.safetensors"
        checkpoint.save_tensors(path, {"x_NL": torch.from_numpy(x_NL)}, {})
        node = {
            "_target_": f"{__name__}.Given",
            "path": str(path),
            "digest": checkpoint.hash_in(path),
            "title": f"{name} (given)",
            "nfe": calls[name],
        }
        found[name] = node | {"samplers": {"given": {"_target_": f"{__name__}.AsGiven"}}}
    return found
