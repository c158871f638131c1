"""Networks over noisy embeddings of tokens: the latent's denoiser, and the denoiser of tokens beside a latent.

Both add their logits to what a `ProductMixture` of segments knows in closed form (`base`), so that they start where it is and
learn what it leaves open.

Shapes: B batch, L tokens in S slots of C, V symbols (id V is the mask), D dims of an embedding, E width, R selected positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.nn import slices
from harness.nn.slices import Logits, by_sequences, head, rows_at
from harness.nn.transformer import Stem, TimeEmbedding, Trunk, TrunkShape
from lddm.networks import slot_positions

#: Features of the base: differences of probabilities, which are small, are brought to the size of a unit normal's.
_BASE_SCALE = 5.0


#: Log-probabilities (B, L, V) that the law gives the tokens of whole segments, from what is seen of them: tokens with masks
#: (B, L), latents (B, L, D), and the latents' times (B,).
Base = Callable[[Tensor, Tensor, Tensor], Tensor]


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

    def forward(
        self,
        z_BLD: Tensor,
        t_B: Tensor,
        base: Callable[[Tensor, Tensor], Tensor],
        centre_V: Tensor,
        read: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """What `read` makes of what the network adds to the base and of the base, both (B, L, V) float32, and of the latents
        and times that both are of: as many sequences at a time as there is room for.

        `base` gives log-probabilities (B, L, V) of latents and times; `centre_V` are the mean probabilities.
        """

        def run(z_BLD: Tensor, t_B: Tensor) -> Tensor:
            base_BLV = base(z_BLD, t_B)
            return read(self._added(z_BLD, base_BLV, centre_V, t_B.float()), base_BLV, z_BLD, t_B)

        return by_sequences(run, z_BLD, t_B, width=len(centre_V))

    def _added(self, z_BLD: Tensor, base_BLV: Tensor, centre_V: Tensor, t_B: Tensor) -> Tensor:
        seen = _seen(z_BLD, base_BLV, centre_V)
        h = self.latent_in(seen.view(len(z_BLD), self.slots, -1).to(self.latent_in.weight.dtype)) + self.slot
        h, _ = self.trunk(
            self.stem(h), slot_positions(self.slots, z_BLD.shape[1], z_BLD.device), self.time(t_B)[:, None]
        )
        return self.token_out(h).view(base_BLV.shape).float()


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
        self,
        x_BL: Tensor,
        z_BLD: Tensor,
        t_B: Tensor,
        base: Base,
        segment: int,
        centre_V: Tensor,
        select_BL: Tensor,
        alone: bool = False,
    ) -> Logits:
        """`base` is of segments of so many tokens, `centre_V` the mean probabilities, `t_B` the times of the latents.

        `alone`: what the network adds to the base, without it. Where there is no room for the log-probabilities of all
        tokens, those of the rows that are asked for are made again.
        """
        V = len(centre_V)
        if alone or torch.is_grad_enabled() or x_BL.numel() * V <= slices.HELD:
            base_BLV = base(x_BL, z_BLD, t_B)
            h_BLE = self._hidden(x_BL, z_BLD, base_BLV, centre_V, t_B.float())
            if alone:
                return Logits(lambda h_RE: head(self.head, h_RE), V, rows_at(h_BLE, select_BL))
            of_R = rows_at(h_BLE, select_BL), rows_at(base_BLV, select_BL)
            return Logits(lambda h_RE, base_RV: head(self.head, h_RE) + base_RV, V, *of_R)

        def hidden(x_BL: Tensor, z_BLD: Tensor, t_B: Tensor) -> Tensor:
            return self._hidden(x_BL, z_BLD, base(x_BL, z_BLD, t_B), centre_V, t_B.float())

        h_BLE = by_sequences(hidden, x_BL, z_BLD, t_B, width=V)
        at_R = select_BL.flatten().nonzero()[:, 0]

        def logits(h_RE: Tensor, at_R: Tensor) -> Tensor:
            return head(self.head, h_RE) + _base_at(at_R, base, segment, V, x_BL, z_BLD, t_B)

        return Logits(logits, V, h_BLE.flatten(0, 1)[at_R], at_R)

    def _hidden(self, x_BL: Tensor, z_BLD: Tensor, base_BLV: Tensor, centre_V: Tensor, t_B: Tensor) -> Tensor:
        """Hidden states (B, L, E)."""
        seen = _seen(z_BLD, base_BLV, centre_V)
        h_BLE = self.embed(x_BL)
        h_BLE = h_BLE + self.latent_in(seen.to(h_BLE.dtype)) + self.time(t_B)[:, None]
        h_BLE, _ = self.trunk(self.stem(h_BLE), torch.arange(x_BL.shape[1], device=x_BL.device))
        return h_BLE


def _base_at(at_R: Tensor, base: Base, segment: int, V: int, x_BL: Tensor, z_BLD: Tensor, t_B: Tensor) -> Tensor:
    """The base's log-probabilities (R, V) at places of the flat tokens, ascending: of their segments, a few at a time."""
    x_SC, z_SCD = x_BL.reshape(-1, segment), z_BLD.reshape(-1, segment, z_BLD.shape[2])
    t_S = t_B.repeat_interleave(x_BL.shape[1] // segment)
    of_U, which_R = (at_R // segment).unique_consecutive(return_inverse=True)
    few = max(1, slices.HELD // (segment * V))
    found = [torch.empty((0, V), device=at_R.device)]
    for first in range(0, len(of_U), few):
        of_u = of_U[first : first + few]
        rows_R = (which_R >= first) & (which_R < first + few)
        base_uCV = base(x_SC[of_u], z_SCD[of_u], t_S[of_u])
        found.append(base_uCV[which_R[rows_R] - first, at_R[rows_R] % segment])
    return torch.cat(found)
