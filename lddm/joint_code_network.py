"""One network over tokens and the codes of a `ProductMixture`, both with masks: two streams, one trunk.

It starts where the mixture is, whatever is shown of both: log p(code | the segment's shown tokens), and the law of a token
given its segment's code, or, where that is masked, given the segment's shown tokens. What it learns is what the mixture
leaves open. With masked codes it makes laws of all tokens, (B, L, V) numbers, and B S M F products.

Shapes: B batch, L tokens in S segments of C, V symbols (id V is the mask), M codes (id M is the mask), K features of a code,
E width, F = C V, N = B S segments, H of them with a masked code, R selected positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.nn.slices import Logits, by_sequences, head, rows_at
from harness.nn.transformer import Stem, Trunk, TrunkShape
from lddm.mixture import ProductMixture
from lddm.networks import slot_positions


class JointCodeNetwork(nn.Module):
    """Tokens (B, L) and codes (B, S) to `Logits` of tokens (R, V) and of codes (R, M) at the selected positions.

    Codes can be selected where they are masked.
    """

    def __init__(self, shape: TrunkShape, vocab_size: int, features: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, shape.width)
        self.mask = nn.Parameter(torch.randn(shape.width))
        self.code_in = nn.Linear(features, shape.width)
        self.stem = Stem(shape.width, shape.stem)
        self.trunk = Trunk(shape)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        self.code_out = nn.Linear(features, shape.width, bias=False)
        nn.init.normal_(self.embed.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.code_out.weight)

    def forward(
        self, x_BL: Tensor, c_BS: Tensor, mixture: ProductMixture, select_BL: Tensor, select_BS: Tensor
    ) -> tuple[Logits, Logits]:
        def hidden(x_BL: Tensor, c_BS: Tensor, select_BL: Tensor, select_BS: Tensor) -> tuple[Tensor, Tensor]:
            return self._hidden(x_BL, c_BS, mixture, select_BL, select_BS)

        h_RE, g_RE = by_sequences(hidden, x_BL, c_BS, select_BL, select_BS)
        score_HM, law_BLV = known(x_BL, c_BS, mixture)
        score_RM = score_HM[select_BS[c_BS == len(mixture.feature_MK)]]
        out_ME = self.code_out(mixture.feature_MK)
        tokens = Logits(
            lambda h_RE, law_RV: head(self.head, h_RE) + law_RV,
            mixture.vocab_size, h_RE, law_BLV.flatten(0, 1)[select_BL.flatten()],
        )  # fmt: skip
        codes = Logits(
            lambda g_RE, score_RM: (g_RE @ out_ME.to(g_RE.dtype).T).float() + score_RM,
            len(mixture.feature_MK), g_RE, score_RM,
        )  # fmt: skip
        return tokens, codes

    def _hidden(
        self, x_BL: Tensor, c_BS: Tensor, mixture: ProductMixture, select_BL: Tensor, select_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        L, S = x_BL.shape[1], c_BS.shape[1]
        positions = torch.cat((torch.arange(L, device=x_BL.device).float(), slot_positions(S, L, x_BL.device)))
        hidden_BS = c_BS == len(mixture.feature_MK)
        h_x = self.stem(self.embed(x_BL))
        h_c = self.code_in(mixture.feature_MK[c_BS.masked_fill(hidden_BS, 0)])
        h_c = torch.where(hidden_BS[..., None], self.mask.to(h_c.dtype), h_c)
        h, _ = self.trunk(torch.cat((h_x, h_c.to(h_x.dtype)), dim=1), positions)
        return rows_at(h[:, :L], select_BL), rows_at(h[:, L:], select_BS)


@torch.no_grad()
def known(x_BL: Tensor, c_BS: Tensor, mixture: ProductMixture) -> tuple[Tensor, Tensor]:
    """What the mixture knows at masked positions, exactly: of codes and of tokens.

    log p(code, the segment's shown tokens) for each masked code, (H, M), and log p(token | what is shown), (B, L, V).
    """
    C, V = mixture.segment, mixture.vocab_size
    c_N, hidden_N = c_BS.flatten(), (c_BS == len(mixture.feature_MK)).flatten()
    x_HC = x_BL.reshape(-1, C)[hidden_N]
    shown_HC = x_HC < V
    with torch.autocast(x_BL.device.type, enabled=False):
        score_HM = mixture.seen(x_HC.masked_fill(~shown_HC, 0), shown_HC) + mixture.log_weight_M
        law_NF = mixture.log_table_MF[c_N.masked_fill(hidden_N, 0)]
        if len(score_HM):
            law_NF[hidden_N] = (score_HM.softmax(-1) @ mixture.log_table_MF.exp()).log()
    return score_HM, law_NF.view(*x_BL.shape, V)
