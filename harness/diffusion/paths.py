"""Time paths: how token time and latent time fall from 1 (noise) to 0 (data) over the calls of a budget.

A path is a list of K steps, one network call each; every step says where both times go and whether it moves tokens,
latents or both. Both times never rise, so any list here is a monotone path in the unit square.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import BudgetError


@dataclass(frozen=True)
class Step:
    """One call: token time t_x -> s_x and latent time t_z -> s_z; equal ends mean that the channel rests."""

    t_x: float
    s_x: float
    t_z: float
    s_z: float

    @property
    def moves_tokens(self) -> bool:
        return self.s_x < self.t_x

    @property
    def moves_latent(self) -> bool:
        return self.s_z < self.t_z


def joint_path(steps: int, lead: float = 1.0) -> list[Step]:
    """FUJI: both channels move in each of K steps; t_x = tau and t_z = tau^lead, so the latent leads where lead > 1."""
    taus = [1.0 - k / steps for k in range(steps + 1)]
    z = [tau**lead for tau in taus]
    return [Step(taus[k], taus[k + 1], z[k], z[k + 1]) for k in range(steps)]


def split_calls(nfe: int, share: float, title: str) -> tuple[int, int]:
    """K = K_z + K_x with K_z nearest to `share` of K, both at least 1; `BudgetError` for K < 2."""
    if nfe < 2:
        raise BudgetError(f"nfe={nfe} cannot be met by {title}: it needs a latent call and a token call; use 2 or more")
    latent = min(max(round(share * nfe), 1), nfe - 1)
    return latent, nfe - latent


def latent_first_path(latent_calls: int, token_calls: int) -> list[Step]:
    """SEQ: the latent falls from 1 to 0 with every token masked, then the tokens with the latent clean."""
    z = [1.0 - k / latent_calls for k in range(latent_calls + 1)]
    x = [1.0 - k / token_calls for k in range(token_calls + 1)]
    first = [Step(1.0, 1.0, z[k], z[k + 1]) for k in range(latent_calls)]
    return first + [Step(x[k], x[k + 1], 0.0, 0.0) for k in range(token_calls)]
