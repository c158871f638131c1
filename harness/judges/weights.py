"""Load a causal language model and be sure of its weights: all present, in the dtype that was asked for, hashed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError, nearest
from harness.judges.scoring import DTYPES


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_causal_model(source: str, dtype: str, device: str, **options: Any) -> nn.Module:
    """`source` (a folder or a hub name) as a causal language model in evaluation mode, from safetensors only.

    Raises `UserError` where a weight that the network needs is not in the file, or the dtype is unknown; errors of
    `transformers` (no such folder, no weights in it) pass through as they are.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise UserError(f"judge dtype={dtype} is unknown{nearest(dtype, DTYPES)}")
    with quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    absent = sorted(str(key) for key in {*info.get("missing_keys", ()), *info.get("mismatched_keys", ())})
    if absent:
        raise UserError(
            f"judge model={source} lacks {len(absent)} of its weights ({', '.join(absent[:3])}, ...); "
            "they would be random: use a complete checkpoint or judge=trained"
        )
    return model.to(device).eval()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of `transformers` inside: what matters is checked and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors."""
    return any(folder.glob("*.safetensors"))
