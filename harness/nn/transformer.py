"""The transformer trunk that every method shares, so that comparisons are fair.

Pre-norm blocks, rotary positions, RMS norm on queries and keys, SDPA attention, optional adaLN time conditioning.
The trunk maps embeddings to hidden states; token embeddings and the LM head live in `harness.nn.networks`, because a
latent network has neither.

Shapes: B batch, L positions, E width, H heads, C conditioning width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class TrunkShape:
    """Size of a trunk: `width` E, `depth` blocks, `heads` H; E must be a multiple of 2 H (rotary pairs).

    `stem` is the width of a convolution over neighbouring positions that bidirectional networks put after their embedding
    (`Stem`); 0: none.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    stem: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a positive multiple of 2 x heads ({2 * self.heads}), depth {self.depth} >= 1"
            )


def rms_norm(u: Tensor, gain: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide by the root mean square of the last axis and multiply by `gain` (Zhang & Sennrich 2019, eq. 4).

    Written with products: the backward pass of `pow`, which `F.rms_norm` is made of on a CPU, took a fifth of a step.
    """
    return u * (
        torch.rsqrt((u * u).mean(dim=-1, keepdim=True, dtype=torch.float32) + eps).to(u.dtype) * gain.to(u.dtype)
    )


def squared_relu(u: Tensor) -> Tensor:
    """`max(u, 0)^2` (So et al. 2021), as a product for the reason given in `rms_norm`."""
    r = F.relu(u)
    return r * r


def rotary_table(positions_L: Tensor, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021, eq. 15), each (L, head_width / 2), float32."""
    half = head_width // 2
    rate_F = base ** (-torch.arange(half, device=positions_L.device, dtype=torch.float32) / half)
    angle_LF = positions_L.float()[:, None] * rate_F[None, :]
    return angle_LF.cos(), angle_LF.sin()


def rotate(u_BHLF: Tensor, cos_LF: Tensor, sin_LF: Tensor) -> Tensor:
    """Rotate the pairs (first half, second half) of the last axis by the position's angles; keeps the dtype."""
    a, b = u_BHLF.chunk(2, dim=-1)
    cos, sin = cos_LF.to(u_BHLF.dtype), sin_LF.to(u_BHLF.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def time_features(t_B: Tensor, width: int) -> Tensor:
    """Sinusoidal features (B, width) of times in [0, 1]; frequencies geometric from 0.1 to 100 periods per unit time."""
    half = width // 2
    periods_F = 0.1 * 1000.0 ** (torch.arange(half, device=t_B.device, dtype=torch.float32) / max(half - 1, 1))
    angle_BF = t_B.float()[:, None] * periods_F[None, :] * (2.0 * math.pi)
    return torch.cat((angle_BF.cos(), angle_BF.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """Times in [0, 1], shape (B,), to conditioning vectors (B, C) by a two-layer MLP on sinusoidal features."""

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        return self.mlp(time_features(t_B, self.features))


def attend(q_BHLF: Tensor, k_BHMF: Tensor, v_BHMF: Tensor, causal: bool) -> Tensor:
    """Softmax attention: `scaled_dot_product_attention`, or its definition written out for training on a CPU.

    PyTorch's CPU kernel takes six times as long as the definition in the backward pass in bfloat16 (measured at
    L = 64 and 128; `benchmarks/attention.py` prints the ratio); the accelerators' kernels have no such gap.
    """
    if q_BHLF.device.type != "cpu" or q_BHLF.shape[2] > 512:
        return F.scaled_dot_product_attention(q_BHLF, k_BHMF, v_BHMF, is_causal=causal)
    score_BHLM = (q_BHLF * q_BHLF.shape[-1] ** -0.5) @ k_BHMF.transpose(-1, -2)
    if causal:
        L = q_BHLF.shape[2]
        score_BHLM = score_BHLM + torch.full((L, L), -torch.inf, device=q_BHLF.device, dtype=score_BHLM.dtype).triu(1)
    return score_BHLM.softmax(dim=-1) @ v_BHMF


class Stem(nn.Module):
    """Adds to each position a convolution of its neighbourhood: embeddings (B, L, E) to (B, L, E).

    In a short training attention finds neighbours only after hundreds of steps; this one sees them from the first
    (measured in `docs/log.md`, 2026-11-27). For bidirectional networks: it looks to both sides. `width` 0 does nothing.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, width, padding=width // 2) if width else None

    def forward(self, h_BLE: Tensor) -> Tensor:
        if self.mix is None:
            return h_BLE
        return h_BLE + self.mix(h_BLE.transpose(1, 2)).transpose(1, 2).to(h_BLE.dtype)


class Attention(nn.Module):
    """Multi-head attention with rotary positions and RMS-normed queries and keys (Henry et al. 2020).

    `cache`, where given, is a pair of (B, H, L_past, F) tensors of one causal decoding step; the new pair is returned.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.scale_q = nn.Parameter(torch.ones(width // heads))
        self.scale_k = nn.Parameter(torch.ones(width // heads))

    def forward(
        self, h_BLE: Tensor, rotary: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, L, E = h_BLE.shape
        q, k, v = self.qkv(h_BLE).view(B, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        q = rotate(rms_norm(q, self.scale_q), *rotary)
        k = rotate(rms_norm(k, self.scale_k), *rotary)
        if cache is not None:
            k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
        # With a cache the new position may see all of the past, so only a full pass needs the causal mask.
        o = attend(q, k, v, causal=self.causal and cache is None)
        return self.out(o.transpose(1, 2).reshape(B, L, E)), (k, v)


class Block(nn.Module):
    """Attention and MLP, pre-norm; with `cond` each is shifted, scaled and gated by adaLN-zero (Peebles & Xie 2023)."""

    def __init__(self, shape: TrunkShape, causal: bool, cond: bool) -> None:
        super().__init__()
        hidden = int(shape.width * shape.mlp_ratio)
        self.attention = Attention(shape.width, shape.heads, causal)
        self.up = nn.Linear(shape.width, hidden, bias=False)
        self.down = nn.Linear(hidden, shape.width, bias=False)
        self.norm_a = nn.Parameter(torch.ones(shape.width))
        self.norm_m = nn.Parameter(torch.ones(shape.width))
        self.modulation = nn.Linear(shape.width, 6 * shape.width) if cond else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, h, rotary, cond=None, cache=None):
        """`cond` is (B, 1, E), or (B, L, E) where streams carry different times; None without conditioning."""
        u = rms_norm(h, self.norm_a)
        if cond is None:
            a, cache = self.attention(u, rotary, cache)
            h = h + a
            u = rms_norm(h, self.norm_m)
            return h + self.down(squared_relu(self.up(u))), cache
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(cond)).chunk(6, dim=-1)
        a, cache = self.attention(u * (1 + scale_a) + shift_a, rotary, cache)
        h = h + (1 + gate_a) * a
        u = rms_norm(h, self.norm_m) * (1 + scale_m) + shift_m
        return h + (1 + gate_m) * self.down(squared_relu(self.up(u))), cache


class Trunk(nn.Module):
    """A stack of blocks and a final norm: embeddings (B, L, E) to hidden states (B, L, E).

    Residual outputs start at 1/sqrt(2 depth) of the usual scale, so that depth does not change the variance.
    """

    def __init__(self, shape: TrunkShape, causal: bool = False, cond: bool = False) -> None:
        super().__init__()
        self.shape, self.causal = shape, causal
        self.recompute = False  # blocks keep their input alone for the backward pass
        self.blocks = nn.ModuleList(Block(shape, causal, cond) for _ in range(shape.depth))
        self.norm = nn.Parameter(torch.ones(shape.width))
        for name, p in self.named_parameters():
            if p.dim() == 2 and "modulation" not in name:
                std = 1.0 / math.sqrt(p.shape[1])
                if name.endswith(("out.weight", "down.weight")):
                    std /= math.sqrt(2 * shape.depth)
                nn.init.normal_(p, std=std)

    def forward(
        self, h_BLE: Tensor, positions_L: Tensor, cond: Tensor | None = None, caches: list | None = None
    ) -> tuple[Tensor, list]:
        """Hidden states (B, L, E) and, of a causal trunk without gradient, the per-block key/value caches of decoding."""
        # Not in `through`: what is compiled would make the angles anew for each head of each sequence.
        return self.through(h_BLE, rotary_table(positions_L, self.shape.width // self.shape.heads), cond, caches)

    def through(
        self, h_BLE: Tensor, rotary: tuple[Tensor, Tensor], cond: Tensor | None, caches: list | None
    ) -> tuple[Tensor, list]:
        """`forward` with the table of its positions; `harness.training.compiled` compiles it."""
        new = []
        for i, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                # Nothing in a block is drawn, so that no state of a generator has to be kept.
                h_BLE = checkpoint(
                    lambda h, *more, of=block: of(h, *more)[0],
                    h_BLE, rotary, cond, use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
                continue
            h_BLE, cache = block(h_BLE, rotary, cond, None if caches is None else caches[i])
            new += [cache] if self.causal else []
        return rms_norm(h_BLE, self.norm), new


def recompute_blocks(module: nn.Module, wanted: bool) -> None:
    """Whether blocks of trunks are computed again in the backward pass: a third more work, and the memory of one block for
    what the others would keep (Chen et al. 2016)."""
    for part in module.modules():
        if isinstance(part, Trunk):
            part.recompute = wanted
