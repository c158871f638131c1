"""Random checkpoints in the layout of MDLM, Duo and SDTT, and their forward pass in plain torch, written a second time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, DEPTH, HEADS, COND, LENGTH = 16, 2, 2, 12, 8


def layout(symbols: int) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape, in the order of the published modules."""
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (symbols, WIDTH),
        "sigma_map.mlp.0.weight": (COND, 256),
        "sigma_map.mlp.0.bias": (COND,),
        "sigma_map.mlp.2.weight": (COND, COND),
        "sigma_map.mlp.2.bias": (COND,),
        "rotary_emb.inv_freq": (WIDTH // HEADS // 2,),
    }
    for i in range(DEPTH):
        own = {
            "norm1.weight": (WIDTH,),
            "attn_qkv.weight": (3 * WIDTH, WIDTH),
            "attn_out.weight": (WIDTH, WIDTH),
            "norm2.weight": (WIDTH,),
            "mlp.0.weight": (4 * WIDTH, WIDTH),
            "mlp.0.bias": (4 * WIDTH,),
            "mlp.2.weight": (WIDTH, 4 * WIDTH),
            "mlp.2.bias": (WIDTH,),
            "adaLN_modulation.weight": (6 * WIDTH, COND),
            "adaLN_modulation.bias": (6 * WIDTH,),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in own.items()}
    return shapes | {
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (symbols, WIDTH),
        "output_layer.linear.bias": (symbols,),
        "output_layer.adaLN_modulation.weight": (2 * WIDTH, COND),
        "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
    }


def random_tensors(symbols: int, seed: int = 0) -> dict[str, Tensor]:
    """Numbers large enough that every part of the network matters."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in layout(symbols).items()}
    made["rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    return made


def config(symbols: int, timed: bool, nested: bool = False) -> dict[str, Any]:
    if nested:
        sizes = {"hidden_size": WIDTH, "n_blocks": DEPTH, "n_heads": HEADS, "cond_dim": COND, "length": LENGTH}
        return {"model": sizes, "time_conditioning": timed, "tokenizer": {"name": "gpt2"}}
    sizes = {"hidden_dim": WIDTH, "n_blocks": DEPTH, "n_heads": HEADS, "cond_dim": COND, "model_length": LENGTH}
    return sizes | {"vocab_size": symbols, "time_conditioning": timed, "model_type": "mdlm"}


def write_checkpoint(
    folder: Path, tensors: dict[str, Tensor], timed: bool = False, nested: bool = False, prefix: str = "backbone."
) -> Path:
    """config.json and model.safetensors; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = len(tensors["vocab_embed.embedding"])
    (folder / "config.json").write_text(json.dumps(config(symbols, timed, nested)))
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def reference(w: dict[str, Tensor], x_BL: Tensor, level_B: Tensor) -> Tensor:
    """Raw logits (B, L, symbols) at noise levels, one head and one position after the other."""

    def norm(h: Tensor, weight: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def silu(u: Tensor) -> Tensor:
        return u / (1 + torch.exp(-u))

    rates = torch.tensor([math.exp(-math.log(10000) * k / 128) for k in range(128)])
    angle = level_B[:, None] * rates
    features = torch.cat((torch.cos(angle), torch.sin(angle)), 1)
    c_BC = silu(linear(silu(linear(features, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
    head_width = WIDTH // HEADS

    def turned(u_BLF: Tensor) -> Tensor:
        made, half = u_BLF.clone(), head_width // 2
        for place in range(u_BLF.shape[1]):
            for k in range(half):
                a, b = u_BLF[:, place, k], u_BLF[:, place, k + half]
                angle = place * 10000.0 ** (-2 * k / head_width)
                made[:, place, k] = a * math.cos(angle) - b * math.sin(angle)
                made[:, place, k + half] = b * math.cos(angle) + a * math.sin(angle)
        return made

    h = w["vocab_embed.embedding"][x_BL]
    for i in range(DEPTH):
        at = f"blocks.{i}."
        parts = linear(c_BC, f"{at}adaLN_modulation")[:, None].split(WIDTH, -1)
        u = norm(h, w[f"{at}norm1.weight"]) * (1 + parts[1]) + parts[0]
        q, k, v = linear(u, f"{at}attn_qkv").split(WIDTH, -1)
        heads = []
        for n in range(HEADS):
            own = slice(n * head_width, (n + 1) * head_width)
            score = turned(q[..., own]) @ turned(k[..., own]).mT / math.sqrt(head_width)
            heads.append(torch.softmax(score, -1) @ v[..., own])
        h = h + parts[2] * linear(torch.cat(heads, -1), f"{at}attn_out")
        u = norm(h, w[f"{at}norm2.weight"]) * (1 + parts[4]) + parts[3]
        u = linear(u, f"{at}mlp.0")
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        h = h + parts[5] * linear(u, f"{at}mlp.2")
    shift, scale = linear(c_BC, "output_layer.adaLN_modulation")[:, None].split(WIDTH, -1)
    return linear(norm(h, w["output_layer.norm_final.weight"]) * (1 + scale) + shift, "output_layer.linear")
