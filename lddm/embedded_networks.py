"""Networks over noisy embeddings of tokens: the latent's denoiser, and the denoiser of tokens beside a latent.

Both add their logits to what a `ProductMixture` of segments knows in closed form (`base`), so that they start where it is and
learn what it leaves open.

Shapes: B batch, L tokens in S slots of C, V symbols (id V is the mask), D dims of an embedding, E width, R selected positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.nn.slices import Logits, head, rows_at
from harness.nn.transformer import Stem, TimeEmbedding, Trunk, TrunkShape
from lddm.networks import slot_positions

#: Features of the base: differences of probabilities, which are small, are brought to the size of a unit normal's.
_BASE_SCALE = 5.0


def _seen(z_BLD: Tensor, base_BLV: Tensor, centre_V: Tensor) -> Tensor:
    """What both networks see of a latent at each position, (B, L, D + V): itself, and what the base makes of it."""
    return torch.cat((z_BLD, (base_BLV.exp() - centre_V) * _BASE_SCALE), dim=-1)


class EmbeddingDenoiser(nn.Module):
    """z_t to logits of all tokens, by a trunk over slots of C neighbouring tokens: a call costs about C times less.

    It returns logits of the tokens and not an estimate of z_0, whose mean is linear in their probabilities (Dieleman et
    al. 2022, section 3.1: score interpolation).
    """

    def __init__(self, shape: TrunkShape, vocab_size: int, length: int, patch: int, dims: int) -> None:
        super().__init__()
        self.slots = slots = length // patch
        self.slot = nn.Parameter(torch.randn(slots, shape.width) * 0.5)
        self.latent_in = nn.Linear(patch * (dims + vocab_size), shape.width)
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape, cond=True)
        self.time = TimeEmbedding(shape.width)
        self.token_out = nn.Linear(shape.width, patch * vocab_size)
        nn.init.zeros_(self.token_out.weight)
        nn.init.zeros_(self.token_out.bias)

    def forward(self, z_BLD: Tensor, base_BLV: Tensor, centre_V: Tensor, t_B: Tensor) -> Tensor:
        """Logits (B, L, V) float32; `base_BLV` are log-probabilities, `centre_V` the mean probabilities."""
        seen = _seen(z_BLD, base_BLV, centre_V)
        h = self.latent_in(seen.view(len(z_BLD), self.slots, -1).to(self.latent_in.weight.dtype)) + self.slot
        h, _ = self.trunk(
            self.stem(h), slot_positions(self.slots, z_BLD.shape[1], z_BLD.device), self.time(t_B)[:, None]
        )
        return self.token_out(h).view(base_BLV.shape).float() + base_BLV


class EmbeddingDecoder(nn.Module):
    """Tokens with masks beside a latent to logits (R, V) at the selected positions, in float32."""

    def __init__(self, shape: TrunkShape, vocab_size: int, dims: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, shape.width)
        self.latent_in = nn.Linear(dims + vocab_size, shape.width)
        self.time = TimeEmbedding(shape.width)
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, x_BL: Tensor, z_BLD: Tensor, base_BLV: Tensor, centre_V: Tensor, t_B: Tensor, select_BL: Tensor
    ) -> Logits:
        """`base_BLV` are log-probabilities, `centre_V` the mean probabilities, `t_B` the times of the latents."""
        seen = _seen(z_BLD, base_BLV, centre_V)
        h_BLE = self.embed(x_BL)
        h_BLE = h_BLE + self.latent_in(seen.to(h_BLE.dtype)) + self.time(t_B)[:, None]
        h_BLE, _ = self.trunk(self.stem(h_BLE), torch.arange(x_BL.shape[1], device=x_BL.device))
        of_R = rows_at(h_BLE, select_BL), rows_at(base_BLV, select_BL)
        return Logits(lambda h_RE, base_RV: head(self.head, h_RE) + base_RV, base_BLV.shape[2], *of_R)
