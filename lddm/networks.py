"""Networks with latent slots, made of the shared trunk: beside tokens (joint), alone (latent), and read off tokens (encoder).

Shapes: B batch, L tokens, V symbols (id V is the mask), S slots, D dims, E width, M selected positions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.nn.slices import Logits, by_sequences, head, rows_at
from harness.nn.transformer import Stem, TimeEmbedding, Trunk, TrunkShape


def small_shape(shape: TrunkShape, depth: int, width: int) -> TrunkShape:
    """The trunk of a latent's network: of so many blocks, and as wide as the backbone where `width` is 0.

    Raises `UserError` for a width that the backbone's heads do not divide.
    """
    width = width or shape.width
    if width % (2 * shape.heads):
        raise UserError(f"prior_width={width} must be a multiple of 2 x heads = {2 * shape.heads}, or 0")
    return replace(shape, depth=depth, width=width)


def slot_positions(slots: int, length: int, device: torch.device) -> Tensor:
    """Rotary positions of S slots spread evenly over L tokens, so that a slot is near the tokens of its segment."""
    return (torch.arange(slots, device=device, dtype=torch.float32) + 0.5) * (length / slots) - 0.5


class JointNetwork(nn.Module):
    """Noisy tokens and noisy latents to token logits and an estimate of z0: two streams, one trunk.

    Each stream has its own embedding, output and time; attention runs over both (the streams share their weights, so
    the network has the size of a token network of the same shape). Times enter through adaLN where `time="adaln"`, or
    are added to the stream's embeddings where `time="add"`.
    """

    def __init__(self, shape: TrunkShape, vocab_size: int, slots: int, dims: int, time: str = "add") -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, shape.width)
        self.slot = nn.Parameter(torch.randn(slots, shape.width) * 0.5)
        self.latent_in = nn.Linear(dims, shape.width)
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape, cond=time == "adaln")
        self.time_x = TimeEmbedding(shape.width)
        self.time_z = TimeEmbedding(shape.width)
        self.add_time = time == "add"
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        self.latent_out = nn.Linear(shape.width, dims)
        nn.init.normal_(self.embed.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)

    def forward(
        self, x_BL: Tensor, z_BSD: Tensor, t_x_B: Tensor, t_z_B: Tensor, select_BL: Tensor | None = None
    ) -> tuple[Logits, Tensor]:
        """`Logits` (M, V) at `select_BL` (all positions where None) and the latent output (B, S, D), in float32."""
        h_ME, out_BSD = by_sequences(self._hidden, x_BL, z_BSD, t_x_B, t_z_B, select_BL)
        return Logits(lambda h_RE: head(self.head, h_RE), self.head.out_features, h_ME), out_BSD

    def _hidden(
        self, x_BL: Tensor, z_BSD: Tensor, t_x_B: Tensor, t_z_B: Tensor, select_BL: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        B, L = x_BL.shape
        S = z_BSD.shape[1]
        positions = torch.cat((torch.arange(L, device=x_BL.device).float(), slot_positions(S, L, x_BL.device)))
        h_x, h_z = self.stem(self.embed(x_BL)), self.latent_in(z_BSD.to(self.latent_in.weight.dtype)) + self.slot
        c_x, c_z = self.time_x(t_x_B)[:, None], self.time_z(t_z_B)[:, None]
        cond = None
        if self.add_time:
            h_x, h_z = h_x + c_x, h_z + c_z
        else:
            cond = torch.cat((c_x.expand(B, L, -1), c_z.expand(B, S, -1)), dim=1)
        h, _ = self.trunk(torch.cat((h_x, h_z.to(h_x.dtype)), dim=1), positions, cond)
        h_x, h_z = h[:, :L], h[:, L:]
        return rows_at(h_x, select_BL), self.latent_out(h_z).float()


class LatentNetwork(nn.Module):
    """A latent-only network over S slots: noisy z (B, S, D) and its time to an output (B, S, D), adaLN conditioned."""

    def __init__(self, shape: TrunkShape, slots: int, dims: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.slot = nn.Parameter(torch.randn(slots, shape.width) * 0.5)
        # Twice the dims: the second half takes the self-conditioning estimate, zeros where there is none.
        self.latent_in = nn.Linear(2 * dims, shape.width)
        self.trunk = Trunk(shape, cond=True)
        self.time = TimeEmbedding(shape.width)
        self.latent_out = nn.Linear(shape.width, dims)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)

    def forward(self, z_BSD: Tensor, t_B: Tensor, previous_BSD: Tensor | None = None) -> Tensor:
        S = z_BSD.shape[1]
        pair = torch.cat((z_BSD, torch.zeros_like(z_BSD) if previous_BSD is None else previous_BSD), dim=-1)
        h = self.latent_in(pair.to(self.latent_in.weight.dtype)) + self.slot
        h, _ = self.trunk(h, slot_positions(S, self.length, z_BSD.device), self.time(t_B)[:, None])
        return self.latent_out(h).float()


class SlotEncoder(nn.Module):
    """Tokens (B, L) to slot features (B, S, D): a bidirectional trunk with S query slots beside the tokens."""

    def __init__(self, shape: TrunkShape, vocab_size: int, slots: int, dims: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, shape.width)
        self.slot = nn.Parameter(torch.randn(slots, shape.width) * 0.5)
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape)
        self.out = nn.Linear(shape.width, dims)
        nn.init.normal_(self.embed.weight)

    def forward(self, x_BL: Tensor) -> Tensor:
        return by_sequences(self._features, x_BL)

    def _features(self, x_BL: Tensor) -> Tensor:
        B, L = x_BL.shape
        S = self.slot.shape[0]
        positions = torch.cat((torch.arange(L, device=x_BL.device).float(), slot_positions(S, L, x_BL.device)))
        h_x = self.stem(self.embed(x_BL))
        h, _ = self.trunk(torch.cat((h_x, self.slot.to(h_x.dtype).expand(B, -1, -1)), dim=1), positions)
        return self.out(h[:, L:]).float()
