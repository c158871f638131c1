"""Networks over the codes of a `Codebook`: the prior over a sequence of codes, and the tokens given them.

Both start where the codebook is: the prior at its weights, the decoder at its laws of tokens. Of a mixture they learn only what
it leaves open, and a code is known to them by its table, so that codes with like tokens are alike from the first step.

Shapes: B batch, L tokens in S segments of C, V symbols (id V is the mask), M codes (id M is the mask), K features of a code,
E width, R selected positions, N laws of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.nn.slices import Logits, by_sequences, head, rows_at
from harness.nn.transformer import Stem, Trunk, TrunkShape
from lddm.codebook import Codebook
from lddm.networks import slot_positions


class CodeNetwork(nn.Module):
    """A masked denoiser of codes: (B, S) codes with masks to logits (R, M) at the selected slots, in float32."""

    def __init__(self, shape: TrunkShape, features: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.mask = nn.Parameter(torch.randn(shape.width))
        self.code_in = nn.Linear(features, shape.width)
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape)
        self.code_out = nn.Linear(features, shape.width, bias=False)
        nn.init.zeros_(self.code_out.weight)

    def forward(self, c_BS: Tensor, mixture: Codebook, select_BS: Tensor) -> Logits:
        feature_MK = mixture.feature_MK
        h_RE = by_sequences(lambda c_BS, select_BS: self._hidden(c_BS, feature_MK, select_BS), c_BS, select_BS)
        out_ME = self.code_out(feature_MK).to(h_RE.dtype)
        return Logits(lambda h_RE: (h_RE @ out_ME.T).float() + mixture.log_weight_M, len(feature_MK), h_RE)

    def _hidden(self, c_BS: Tensor, feature_MK: Tensor, select_BS: Tensor) -> Tensor:
        hidden_BS, S = c_BS == len(feature_MK), c_BS.shape[1]
        h = self.code_in(feature_MK[c_BS.masked_fill(hidden_BS, 0)])
        h = self.stem(torch.where(hidden_BS[..., None], self.mask.to(h.dtype), h))
        h, _ = self.trunk(h, slot_positions(S, self.length, c_BS.device))
        return rows_at(h, select_BS)


class CodeDecoder(nn.Module):
    """A masked denoiser of tokens beside codes: logits (R, V) at the selected positions, in float32.

    The code of a segment is added to the embeddings of its tokens, each place having a map of its own. A code is a number, or
    the features that stand for one while the codes themselves are learnt (B, S, K).
    """

    def __init__(self, shape: TrunkShape, vocab_size: int, features: int, segment: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, shape.width)
        self.code_in = nn.Sequential(nn.Linear(features, shape.width), nn.Linear(shape.width, segment * shape.width))
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x_BL: Tensor, code: Tensor, mixture: Codebook, select_BL: Tensor) -> Logits:
        def hidden(x_BL: Tensor, code: Tensor, select_BL: Tensor) -> Tensor:
            h_BLE = self.embed(x_BL)
            feature_BSK = code if code.is_floating_point() else mixture.feature_MK[code]
            h_BLE = h_BLE + self.code_in(feature_BSK).view(h_BLE.shape).to(h_BLE.dtype)
            h_BLE, _ = self.trunk(self.stem(h_BLE), torch.arange(x_BL.shape[1], device=x_BL.device))
            return rows_at(h_BLE, select_BL)

        # The row of each token's law, which is read in slices beside the head: of all tokens at once it is (B, L, V).
        law_NV, row_BL = mixture.laws(code)
        return Logits(
            lambda h_RE, row_R: head(self.head, h_RE) + law_NV[row_R],
            mixture.vocab_size, by_sequences(hidden, x_BL, code, select_BL), rows_at(row_BL, select_BL),
        )  # fmt: skip
