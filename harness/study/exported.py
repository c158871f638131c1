"""A trained model by itself: a folder with safetensors, config.json and the tokenizer, that needs neither study nor data.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.registry import build_options
from harness.errors import UserError, nearest
from harness.interface import Problem, Sampler
from harness.nn.transformer import TrunkShape
from harness.store import write_text
from harness.study.budget import parse_budgets
from harness.study.cells import Part
from harness.study.sampling import draw_samples
from harness.study.session import MODEL
from harness.training import checkpoint
from harness.training.precision import Numerics, resolve
from harness.training.seeds import step_generator

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_CARD = """---
library_name: few-step-harness
tags: [discrete-diffusion]
---
# {title}

{length} tokens of {vocab_size} symbols, trained on {data}. Drawn with few-step-harness:

```python
import harness
model = harness.load("this folder")
print(model.draw(n=4, nfe=8))
```
"""


@dataclasses.dataclass
class Drawn:
    """A sampler on its trained method, and how it draws: `seeds` (of sampling, of training), `chunk` sequences at a time."""

    sampler: Sampler
    decode: Callable[[Sequence[int]], str]
    numerics: Numerics
    chunk: int
    seeds: tuple[int, int]

    def draw_ids(self, n: int, nfe: int, seed: int | None = None, temperature: float = 1.0) -> np.ndarray:
        """`n` samples (N, L) at a budget; without a seed those of the study, to the bit where n is the study's too.

        Raises `UserError` for a budget that cannot be met.
        """
        if n < 1:
            raise UserError(f"n={n}: draw 1 or more")
        parse_budgets(self.sampler, [nfe])
        seeds = self.seeds if seed is None else (seed, self.seeds[1])
        part = Part(nfe, temperature)
        return draw_samples(self.sampler, part, n, self.chunk, seeds, self.numerics, lambda done, total: None).x_NL

    def draw(self, n: int, nfe: int, seed: int | None = None, temperature: float = 1.0) -> list[str]:
        """The same as texts."""
        return [self.decode(row) for row in self.draw_ids(n, nfe, seed, temperature).tolist()]

    def bound(self, x_NL: np.ndarray, seed: int = 0) -> np.ndarray | None:
        """One draw of the upper bound on `-log p(x)` of each sample, (N,) nats; None where the sampler has none."""
        generator = step_generator(self.numerics.device, seed)
        x_BL = torch.from_numpy(np.asarray(x_NL, dtype=np.int64)).to(self.numerics.device)
        with torch.no_grad():
            found = self.sampler.bound(x_BL, generator)
        return None if found is None else found.total_B.cpu().numpy()


def export(weights: Path, described: dict[str, Any], title: str, folder: Path) -> None:
    """Write a model as a folder of safetensors and JSON.

    `weights` is the file that its training has left, `described` what `Session.described` says of it.
    """
    tensors, meta = checkpoint.load_tensors(weights)
    config = {key: value for key, value in described.items() if key != "tokenizer_text"}
    checkpoint.save_tensors(folder / WEIGHTS, tensors, described | {"made": meta["made"]})
    write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    if described["tokenizer_text"]:
        write_text(folder / TOKENIZER, described["tokenizer_text"])
    write_text(folder / "README.md", _CARD.format(title=title, **config))


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload an exported folder to a repository of the hub, made if it is not there; its address. Raises `UserError`."""
    from huggingface_hub import HfApi

    from harness.nn.pretrained import guarded  # start-up time: as the hub's client

    with guarded("repository", repository, "give OWNER/NAME and log in with `hf auth login`"):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))


def load_exported(folder: Path, label: str = "") -> Drawn:
    """The model in an exported folder, with the sampler of that label (the first unless told); raises `UserError`.

    The configuration names a class that is imported: a folder is trusted like a program.
    """
    tensors, meta = checkpoint.load_tensors(folder / WEIGHTS)
    if meta.get("kind") != MODEL:
        raise UserError(f"run={folder}: {WEIGHTS} is no model that was exported; give the folder of a study")
    decode = _decoder(meta)
    cls, options = build_options(meta["config"])
    method = cls(Problem(meta["vocab_size"], meta["length"], TrunkShape(**meta["shape"]), None, decode), options)
    checkpoint.load_model(method, tensors, folder / WEIGHTS)
    for stage in method.stages():
        method.set_stage(stage.name)
    samplers = meta["config"]["samplers"]
    label = label or next(iter(samplers))
    if label not in samplers:
        raise UserError(f"method={label}: is no sampler of {folder}{nearest(label, samplers)}")
    kind, own = build_options(samplers[label])
    kinds: dict[str, type[Sampler]] = {name: build_options(node)[0] for name, node in samplers.items()}
    if kinds[label].settled:
        others = [name for name in samplers if not kinds[name].settled]
        instead = f"method={others[0]}" if others else "the folder of its study"
        raise UserError(
            f"method={label}: draws by what validation text chose, which {folder} does not hold; use {instead}"
        )
    numerics = dataclasses.replace(resolve("auto", meta["precision"]), eval_tokens=meta["eval_tokens"])
    sampler = kind(method.eval().to(numerics.device), own)
    return Drawn(sampler, decode, numerics, meta["chunk"], (meta["sampling_seed"], meta["seed"]))


def _decoder(meta: dict[str, Any]) -> Callable[[Sequence[int]], str]:
    if meta["tokenizer"] is None:
        return lambda ids: " ".join(map(str, ids))
    spec, options = build_options(meta["tokenizer"])
    return spec(options).restore(meta["tokenizer_text"]).decode
