"""The token network made of the shared trunk: tokens in, tokens out.

Shapes: B batch, L tokens, V symbols (id V is the mask, or the start symbol), E width, M selected positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.nn.slices import Logits, all_alike, by_sequences, head, rows_at
from harness.nn.transformer import Stem, TimeEmbedding, Trunk, TrunkShape


class TokenNetwork(nn.Module):
    """Tokens (B, L) to `Logits` (M, V) at the selected positions (all of them where None), in float32.

    The LM head runs only where `select_BL` is true (row-major order): in the last steps of a sampler or at small noise
    that is a small part of the sequence. Without gradient, sequences that are all the same (masks, where a sampler begins)
    go through the trunk as one. `time` adds adaLN conditioning. Instead of tokens it takes laws of them (B, L, V).
    """

    def __init__(self, shape: TrunkShape, vocab_size: int, causal: bool = False, time: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, shape.width)
        self.stem = Stem(shape.width, 0 if causal else shape.stem)
        self.trunk = Trunk(shape, causal=causal, cond=time)
        self.time = TimeEmbedding(shape.width) if time else None
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x_BL: Tensor, select_BL: Tensor | None = None, t_B: Tensor | None = None) -> Logits:
        return Logits(self._logits, self.head.out_features, by_sequences(self._hidden, x_BL, select_BL, t_B))

    def _logits(self, h_RE: Tensor) -> Tensor:
        return head(self.head, h_RE)

    def _hidden(self, x_BL: Tensor, select_BL: Tensor | None, t_B: Tensor | None) -> Tensor:
        if all_alike(x_BL, t_B if self.time is not None else None):
            # One sequence alone is no size that is worth compiling for.
            with torch.compiler.set_stance("force_eager"):
                h_1LE = self._through(x_BL[:1], None if t_B is None else t_B[:1])
            return rows_at(h_1LE.expand(len(x_BL), -1, -1), select_BL)
        return rows_at(self._through(x_BL, t_B), select_BL)

    def _through(self, x_BL: Tensor, t_B: Tensor | None) -> Tensor:
        positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
        cond = self.time(t_B)[:, None] if self.time is not None else None
        # A law over tokens is embedded as their mean.
        e_BLE = x_BL @ self.embed.weight[:-1] if x_BL.is_floating_point() else self.embed(x_BL)
        return self.trunk(self.stem(e_BLE), positions_L, cond)[0]

    def decode_next(self, x_B: Tensor, position: int, caches: list | None) -> tuple[Tensor, list]:
        """One causal decoding step: logits (B, V) of the symbol after `x_B` at `position`, and the grown caches."""
        positions = torch.tensor([position], device=x_B.device)
        h_B1E, caches = self.trunk(self.embed(x_B[:, None]), positions, None, caches)
        return self._logits(h_B1E[:, 0]), caches
