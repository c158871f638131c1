"""What public code imports that is not there on a CPU: flash-attention as torch's, CUDA's autocast as the CPU's, a tokenizer.

For `benchmarks.peers`.

Shapes: B sequences of L tokens, H heads of D dims.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from typing import Any

import torch
from torch import Tensor


class Tokenizer:
    """All that a model asks of it."""

    mask_token = None
    bos_token_id = eos_token_id = pad_token_id = 0
    pad_token = eos_token = "."

    def __init__(self, vocab: int) -> None:
        self.vocab_size = vocab

    def __len__(self) -> int:
        return self.vocab_size


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[: x.shape[1], None], sin[: x.shape[1], None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _rotate_qkv(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k, v = qkv.unbind(2)
    return torch.stack((_rotate(q, cos, sin), _rotate(k, cos, sin), v), dim=2)


def _attend(qkv: Tensor, ends: Tensor, length: int, dropout: float, causal: bool = False, **_: object) -> Tensor:
    q, k, v = qkv.view(-1, length, *qkv.shape[1:]).unbind(2)
    each = (part.transpose(1, 2) for part in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(*each, is_causal=causal)
    return out.transpose(1, 2).flatten(0, 1)


def _unused(key: str) -> type:
    """A class that is imported and never used."""
    if key.startswith("__"):
        raise AttributeError(key)
    return type(key, (), {})


def install() -> None:
    """Modules and functions that exist with a GPU alone, or are imported and not used here."""
    names = ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary", "flash_attn.flash_attn_interface")
    names += ("causal_conv1d", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    names += ("mamba_ssm.ops.triton", "mamba_ssm.ops.triton.selective_state_update", "mamba_ssm.ops.triton.layernorm")
    names += ("timm", "timm.scheduler", "torchvision", "torchvision.transforms")
    for name in names:
        module: Any = types.ModuleType(name)
        module.__getattr__ = _unused
        module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    rotary, attention = sys.modules["flash_attn.layers.rotary"], sys.modules["flash_attn.flash_attn_interface"]
    rotary.apply_rotary_emb_qkv_ = _rotate_qkv  # type: ignore[attr-defined]
    rotary.apply_rotary_emb_torch = _rotate  # type: ignore[attr-defined]
    attention.flash_attn_varlen_qkvpacked_func = _attend  # type: ignore[attr-defined]
    whole = torch.autocast

    def autocast(*_: object, enabled: bool = True, dtype: torch.dtype | None = None, **__: object) -> Any:
        # Without a dtype CUDA's own is half; what asks for float32 means no autocast.
        return whole("cpu", dtype=torch.bfloat16, enabled=enabled and dtype is not torch.float32)

    torch.cuda.amp.autocast = autocast  # type: ignore[misc,assignment]
    torch.amp.autocast = autocast  # type: ignore[misc,assignment]


def modules(path: str, *names: str) -> list[Any]:
    """Modules of a checkout, whose folder is its only root."""
    # Before the stand-ins: they look at what is installed.
    transformers, _ = importlib.import_module("transformers"), importlib.import_module("lightning")
    install()
    sys.path.insert(0, path)
    transformers.AutoTokenizer.from_pretrained = lambda *_, **__: Tokenizer(2)  # of a judge that is never asked
    return [importlib.import_module(name) for name in names]
