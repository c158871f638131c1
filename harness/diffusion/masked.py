"""The masked (absorbing) process over tokens: forward draw, bound, and the exact two-stage reverse step.

Shapes: B sequences, L tokens, V symbols, M selected positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.diffusion.schedules import TokenSchedule

#: Dtype of every categorical draw; samplers report it from the tensor that was drawn from, not from here.
DRAW_DTYPE = torch.float64


def mask_tokens(x_BL: Tensor, alpha_B: Tensor, mask_id: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forward process q(x_t | x_0): each token is replaced by the mask with probability 1 - alpha.

    Returns the noisy tokens (B, L) and where they are masked (B, L) bool.
    """
    u_BL = torch.rand(x_BL.shape, generator=generator, dtype=torch.float64, device=x_BL.device)
    masked_BL = u_BL >= alpha_B.double()[:, None]
    return torch.where(masked_BL, mask_id, x_BL), masked_BL


def masked_nll(logits_MV: Tensor, x_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """Sum of cross-entropies over each sequence's masked positions, (B,), nats; logits are those of the masked ones.

    Row-major order of `masked_BL` is the order of `logits_MV`.
    """
    nll_M = F.cross_entropy(logits_MV.float(), x_BL[masked_BL], reduction="none")
    row_M = masked_BL.nonzero()[:, 0]
    return torch.zeros(x_BL.shape[0], dtype=nll_M.dtype, device=nll_M.device).index_add_(0, row_M, nll_M)


LOSSES = ("nelbo", "masked_mean")


@dataclass(frozen=True)
class MaskedTerms:
    """Cross-entropy of one noise draw for each sequence, before any weighting.

    `nll_B` sums over the masked positions (nats), `count_B` is their number, `weight_B` the NELBO's weight at the time
    that was drawn.
    """

    nll_B: Tensor
    count_B: Tensor
    weight_B: Tensor

    @property
    def nelbo_B(self) -> Tensor:
        """-alpha' / (1 - alpha) times the cross-entropy, (B,) nats: an unbiased draw of the bound (MDLM, eq. 10)."""
        return self.weight_B * self.nll_B

    def loss(self, kind: str, length: int) -> Tensor:
        """What is trained, in nats per token, a scalar.

        "nelbo" is the bound itself. "masked_mean" is the mean over all masked positions of the batch, as in MaskGIT: the
        same optimum, less weight on times with few masks, much less variance. What is *reported* is always the bound.
        """
        if kind == "nelbo":
            return (self.nelbo_B.mean() / length).float()
        return (self.nll_B.sum() / self.count_B.sum().clamp(min=1)).float()


def choose_flips(masked_BL: Tensor, alpha_t: float, alpha_s: float, generator: torch.Generator) -> Tensor:
    """First stage of a reverse step t -> s: each masked position is revealed with (alpha_s - alpha_t) / (1 - alpha_t).

    Independent of the network, so the LM head and the draw are needed only where the result (B, L) is true. At
    alpha_s = 1 every masked position is revealed.
    """
    if not 0.0 <= alpha_t < alpha_s <= 1.0:
        raise ValueError(f"a reverse step needs 0 <= alpha_t < alpha_s <= 1, not {alpha_t} and {alpha_s}")
    if alpha_s == 1.0:
        return masked_BL.clone()
    rate = (alpha_s - alpha_t) / (1.0 - alpha_t)
    u_BL = torch.rand(masked_BL.shape, generator=generator, dtype=DRAW_DTYPE, device=masked_BL.device)
    return masked_BL & (u_BL < rate)


def draw_tokens(logits_MV: Tensor, generator: torch.Generator, temperature: float = 1.0) -> tuple[Tensor, str]:
    """Second stage: one token for each row by inversion of the cumulative probabilities, all in float64.

    A row costs one uniform, not V of them, and a token of probability 0 is never drawn. The temperature divides the
    logits of x0, never a posterior that holds the mask. Returns tokens (M,) and the dtype that was drawn from.
    """
    p_MV = (logits_MV.to(DRAW_DTYPE) / temperature).softmax(dim=-1)
    cdf_MV = p_MV.cumsum(dim=-1)
    u_M1 = torch.rand((p_MV.shape[0], 1), generator=generator, dtype=DRAW_DTYPE, device=p_MV.device)
    # Scaled by the last entry so that rounding of the sum cannot push a draw past the end.
    index_M1 = torch.searchsorted(cdf_MV, u_M1 * cdf_MV[:, -1:], right=True)
    return index_M1[:, 0].clamp_(max=p_MV.shape[1] - 1), str(cdf_MV.dtype).removeprefix("torch.")


def step_alphas(schedule: TokenSchedule, steps: int) -> list[float]:
    """alpha at the K + 1 equally spaced times from 1 to 0: starts at 0, ends at exactly 1."""
    t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    alphas = schedule.alpha(t).tolist()
    alphas[0], alphas[-1] = 0.0, 1.0
    return alphas
