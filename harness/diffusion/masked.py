"""The masked (absorbing) process over tokens: forward draw, bound, and the exact two-stage reverse step.

Shapes: B sequences, L tokens, V symbols, M selected positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.diffusion.schedules import TokenSchedule
from harness.nn.slices import Logits

#: Dtype of every categorical draw; samplers report it from the tensor that was drawn from, not from here.
DRAW_DTYPE = torch.float64
#: Probabilities that are worked on at a time: in float64 they and what they are made of take 32 MiB each on a CPU.
_AT_ONCE, _AT_ONCE_ON_GPU = 2**22, 2**25


def mask_tokens(x_BL: Tensor, alpha_B: Tensor, mask_id: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forward process q(x_t | x_0): each token is replaced by the mask with probability 1 - alpha.

    Returns the noisy tokens (B, L) and where they are masked (B, L) bool.
    """
    u_BL = torch.rand(x_BL.shape, generator=generator, dtype=torch.float64, device=x_BL.device)
    masked_BL = u_BL >= alpha_B.double()[:, None]
    return torch.where(masked_BL, mask_id, x_BL), masked_BL


def token_nll(logits_MV: Tensor | Logits, token_M: Tensor) -> Tensor:
    """Cross-entropy of one token at each position, (M,) nats; where no gradient is wanted in slices."""

    def nll(logits_RV: Tensor, token_R: Tensor) -> Tensor:
        return F.cross_entropy(logits_RV.float(), token_R, reduction="none")

    if torch.is_grad_enabled():
        return nll(Logits.of(logits_MV).whole(), token_M)
    return by_rows(nll, logits_MV, token_M)


def masked_nll(
    logits_MV: Tensor | Logits,
    x_BL: Tensor,
    masked_BL: Tensor,
    of_token: Callable[[Tensor | Logits, Tensor], Tensor] = token_nll,
) -> Tensor:
    """Sum of cross-entropies over each sequence's masked positions, (B,), nats; logits are those of the masked ones.

    Row-major order of `masked_BL` is the order of `logits_MV`. `of_token` is summed in the place of the cross-entropy.
    """
    at_M = masked_BL.flatten().nonzero()[:, 0]
    nll_M = of_token(logits_MV, x_BL.flatten()[at_M])
    row_M = at_M // x_BL.shape[1]
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


def draw_tokens(logits_MV: Tensor | Logits, generator: torch.Generator, temperature: float = 1.0) -> tuple[Tensor, str]:
    """Second stage: one token for each row by inversion of the cumulative probabilities, all in float64.

    A row costs one uniform, not V of them, and a token of probability 0 is never drawn. The temperature divides the
    logits of x0, never a posterior that holds the mask. Returns tokens (M,) and the dtype that was drawn from. Raises
    `FloatingPointError` for logits that are not numbers.
    """
    u_M1 = torch.rand((len(logits_MV), 1), generator=generator, dtype=DRAW_DTYPE, device=logits_MV.device)
    token_M = by_rows(lambda logits_RV, u_R1: invert(logits_RV, u_R1, temperature), logits_MV, u_M1)
    # `searchsorted` takes no sums of another dtype than that of the uniforms.
    return token_M, str(u_M1.dtype).removeprefix("torch.")


def by_rows(function: Callable[..., Tensor], logits_MV: Tensor | Logits, *others: Tensor) -> Tensor:
    """`function` of slices of rows, put together: what it needs in between has a bounded size, whatever M and V are."""
    at_once = _AT_ONCE_ON_GPU if logits_MV.device.type == "cuda" else _AT_ONCE
    rows = max(1, at_once // max(1, logits_MV.shape[1]))
    slices = zip(logits_MV.split(rows), *(other.split(rows) for other in others), strict=True)
    return torch.cat([function(*each) for each in slices])


def log_p(logits_MV: Tensor | Logits, token_M: Tensor) -> Tensor:
    """Logarithm of the probability of one token of each row, (M,) float64."""
    log_p_M1 = by_rows(lambda l_RV, x_R1: l_RV.double().log_softmax(-1).gather(1, x_R1), logits_MV, token_M[:, None])
    return log_p_M1[:, 0]


def invert(logits_RV: Tensor, u_R1: Tensor, temperature: float = 1.0) -> Tensor:
    """The token of each row (R,) at which the cumulative probability passes the row's uniform."""
    cdf_RV = (logits_RV.to(DRAW_DTYPE) / temperature).softmax(dim=-1).cumsum(dim=-1)
    if not cdf_RV[:, -1:].isfinite().all():
        raise FloatingPointError("logits to draw from are not numbers")
    # Scaled by the last entry so that rounding of the sum cannot push a draw past the end.
    index_R1 = torch.searchsorted(cdf_RV, u_R1 * cdf_RV[:, -1:], right=True)
    return index_R1[:, 0].clamp_(max=logits_RV.shape[1] - 1)


def step_alphas(schedule: TokenSchedule, steps: int) -> list[float]:
    """alpha at the K + 1 equally spaced times from 1 to 0: starts at 0, ends at exactly 1."""
    t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    alphas = schedule.alpha(t).tolist()
    alphas[0], alphas[-1] = 0.0, 1.0
    return alphas
