"""The denoiser of the published MDLM, Duo and SDTT checkpoints: their arithmetic under their tensors' names.

A transformer over tokens whose blocks are shifted, scaled and gated by the noise level (adaLN, Peebles & Xie 2023), also where
a model was trained without it: the level is 0 then. LayerNorm has a weight and no bias and works in float32, positions are
rotary in halves, the MLP has GELU in its tanh form, and the head is no copy of the embedding. It is never trained here.

Shapes: B sequences, L tokens, V symbols of the data, E width, H heads, F width of a head, C width of the level, R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.nn.slices import Logits, by_sequences, rows_at
from harness.nn.transformer import attend, rotary_table, rotate

_LEVEL_FEATURES, _LEVEL_PERIOD = 256, 10_000.0
#: Their time 1 leaves this share of the tokens: the level is -log(1 - (1 - eps) t), 6.9 at the most.
_EPS = 1e-3
#: Added to the mask's logit: its probability is exactly 0, and unlike with infinity p log p is too.
_NEVER = -1e6


@dataclass(frozen=True)
class DiTShape:
    """What a checkpoint's configuration says: `symbols` rows of its table, the mask's among them; `cond` is C.

    `timed`: whether it was trained with the noise level as an input. `length` is that of its training sequences.
    """

    symbols: int
    width: int
    depth: int
    heads: int
    cond: int
    length: int
    timed: bool


def level_features(level_B: Tensor) -> Tensor:
    """Cosines and sines (B, 256) of the noise level, periods 2 pi to 2 pi 10^4, geometric."""
    half = _LEVEL_FEATURES // 2
    rate_F = torch.exp(-math.log(_LEVEL_PERIOD) * torch.arange(half, device=level_B.device, dtype=torch.float32) / half)
    angle_BF = level_B.float()[:, None] * rate_F[None, :]
    return torch.cat((angle_BF.cos(), angle_BF.sin()), dim=-1)


class DiTBlock(nn.Module):
    """Attention and MLP with adaLN: `h + gate * f(norm(h) * (1 + scale) + shift)` for each."""

    def __init__(self, shape: DiTShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Linear(shape.cond, 6 * width)

    def forward(self, h_BLE: Tensor, rotary: tuple[Tensor, Tensor], cond_BC: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(cond_BC)[:, None].chunk(6, dim=-1)
        B, L, E = h_BLE.shape
        u_BLE = self.norm1(h_BLE.float()) * (1 + scale_a) + shift_a
        q, k, v = self.attn_qkv(u_BLE).view(B, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        o_BHLF = attend(rotate(q, *rotary), rotate(k, *rotary), v, causal=False)
        h_BLE = h_BLE + gate_a * self.attn_out(o_BHLF.transpose(1, 2).reshape(B, L, E))
        return h_BLE + gate_m * self.mlp(self.norm2(h_BLE.float()) * (1 + scale_m) + shift_m)


class DiT(nn.Module):
    """Tokens (B, L) and times (B,) to `Logits` of V symbols at the selected positions, as `harness.nn.networks.TokenNetwork`.

    V is `vocab_size`; id V, this project's mask, is `mask_id` in the checkpoint's table, and what is not among the V symbols
    is not among the logits. A `mask_id` below V is a symbol that is never drawn. None: there is no mask.
    """

    def __init__(self, shape: DiTShape, vocab_size: int, mask_id: int | None) -> None:
        super().__init__()
        self.shape, self.vocab_size, self.mask_id = shape, vocab_size, mask_id
        width, cond = shape.width, shape.cond
        # In the order of the published modules: averaged weights come as a list in the order of their parameters.
        self.vocab_embed = nn.ParameterDict({"embedding": nn.Parameter(torch.empty(shape.symbols, width))})
        level = nn.Sequential(nn.Linear(_LEVEL_FEATURES, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.sigma_map = nn.ModuleDict({"mlp": level})
        self.blocks = nn.ModuleList(DiTBlock(shape) for _ in range(shape.depth))
        self.output_layer = nn.ModuleDict(
            {
                "norm_final": nn.LayerNorm(width, bias=False),
                "linear": nn.Linear(width, shape.symbols),
                "adaLN_modulation": nn.Linear(cond, 2 * width),
            }
        )

    def forward(self, x_BL: Tensor, select_BL: Tensor | None = None, t_B: Tensor | None = None) -> Logits:
        return Logits(self._logits, self.vocab_size, by_sequences(self._rows, x_BL, select_BL, t_B))

    def _rows(self, x_BL: Tensor, select_BL: Tensor | None, t_B: Tensor | None) -> Tensor:
        if self.mask_id is not None:
            x_BL = torch.where(x_BL == self.vocab_size, self.mask_id, x_BL)
        if t_B is None or not self.shape.timed:
            t_B = torch.zeros(len(x_BL), device=x_BL.device)
        return rows_at(self.hidden(x_BL, -torch.log1p(-(1.0 - _EPS) * t_B.float())), select_BL)

    def hidden(self, x_BL: Tensor, level_B: Tensor) -> Tensor:
        """What the head reads, (B, L, E), of ids in the checkpoint's table at noise levels."""
        with torch.autocast(x_BL.device.type, enabled=False):  # their level is embedded in float32
            cond_BC = F.silu(self.sigma_map["mlp"](level_features(level_B)))
        h_BLE = self.vocab_embed["embedding"][x_BL]
        positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
        rotary = rotary_table(positions_L, self.shape.width // self.shape.heads)
        for block in self.blocks:
            h_BLE = block(h_BLE, rotary, cond_BC)
        shift, scale = self.output_layer["adaLN_modulation"](cond_BC)[:, None].chunk(2, dim=-1)
        return self.output_layer["norm_final"](h_BLE.float()) * (1 + scale) + shift

    def _logits(self, h_RE: Tensor) -> Tensor:
        logits_RV = self.output_layer["linear"](h_RE).float()[:, : self.vocab_size]
        if self.mask_id is not None and self.mask_id < self.vocab_size:
            logits_RV[:, self.mask_id] = _NEVER
        return logits_RV
