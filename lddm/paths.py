"""Time paths: how token time and latent time fall from 1 (noise) to 0 (data) over the calls of a budget.

A path is a curve from (1, 1) to (0, 0) in the square of token time and latent time along which neither rises. A sampler
cuts it into K steps, one network call each; a bound integrates along it, the tokens' term over token time and the
latent's over latent time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from harness.errors import BudgetError, UserError

Point = tuple[float, float]
KINDS = ("lead", "offset", "latent_first", "through")


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


# ---- steps ------------------------------------------------------------------------------------------------------------
def joint_path(steps: int, lead: float = 1.0) -> list[Step]:
    """Both channels move in each of K steps; t_x = tau and t_z = tau^lead, so the latent leads where lead > 1."""
    taus = [1.0 - k / steps for k in range(steps + 1)]
    z = [tau**lead for tau in taus]
    return [Step(taus[k], taus[k + 1], z[k], z[k + 1]) for k in range(steps)]


def offset_path(steps: int, offset: float) -> list[Step]:
    """K steps equal in token time; t_z = max(0, (t_x - offset) / (1 - offset)), so the latent is clean from `offset` on."""
    points = [(1.0 - k / steps, max(0.0, (1.0 - k / steps - offset) / (1.0 - offset))) for k in range(steps + 1)]
    return _as_steps([(1.0, 1.0), *points[1:-1], (0.0, 0.0)])


def latent_first_path(latent_calls: int, token_calls: int) -> list[Step]:
    """The latent falls from 1 to 0 with every token masked, then the tokens with the latent clean."""
    z = [1.0 - k / latent_calls for k in range(latent_calls + 1)] if latent_calls else []
    x = [1.0 - k / token_calls for k in range(token_calls + 1)] if token_calls else []
    return [Step(1.0, 1.0, t, s) for t, s in pairwise(z)] + [Step(t, s, 0.0, 0.0) for t, s in pairwise(x)]


def through(points: Sequence[Point], steps: int) -> list[Step]:
    """K steps of equal length along the polyline through `points` = (t_x, t_z), from (1, 1) to (0, 0).

    Raises `UserError` where a time rises, or the ends are others.
    """
    check_points(points)
    x, z = (np.array(axis, dtype=np.float64) for axis in zip(*points, strict=True))
    travelled = np.concatenate(([0.0], np.hypot(np.diff(x), np.diff(z)).cumsum()))
    cuts = np.linspace(0.0, travelled[-1], steps + 1)
    found = zip(np.interp(cuts, travelled, x).tolist(), np.interp(cuts, travelled, z).tolist(), strict=True)
    return _as_steps(list(found))


def check_points(points: Sequence[Point]) -> None:
    """Raise `UserError` in one line unless the points go from (1, 1) to (0, 0) and no time rises on the way."""
    if len(points) < 2 or (tuple(points[0]), tuple(points[-1])) != ((1.0, 1.0), (0.0, 0.0)):
        raise UserError(f"path through {list(points)}: it must go from (1, 1) to (0, 0)")
    for (x, z), (next_x, next_z) in pairwise(points):
        if not (next_x <= x and next_z <= z):
            raise UserError(
                f"path corner ({next_x:g}, {next_z:g}) lies above ({x:g}, {z:g}) before it; both times may only fall, "
                f"choose at most ({min(x, next_x):g}, {min(z, next_z):g})"
            )


def _as_steps(points: list[Point]) -> list[Step]:
    """Steps between neighbours; rounded, so that a channel which rests in exact arithmetic rests here too."""
    rounded = [(round(x, 12), round(z, 12)) for x, z in points]
    return [Step(a[0], b[0], a[1], b[1]) for a, b in pairwise(rounded)]


def split_calls(nfe: int, share: float, title: str) -> tuple[int, int]:
    """K = K_z + K_x with K_z nearest to `share` of K, both at least 1; `BudgetError` for K < 2."""
    if nfe < 2:
        raise BudgetError(f"nfe={nfe} cannot be met by {title}: it needs a latent call and a token call; use 2 or more")
    latent = min(max(round(share * nfe), 1), nfe - 1)
    return latent, nfe - latent


# ---- curves -----------------------------------------------------------------------------------------------------------
class TimePath(ABC):
    """A monotone curve from (1, 1) to (0, 0): each time as a function of the other, and its cut into K calls."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the path is called in titles."""

    @abstractmethod
    def latent_time(self, t_x_B: Tensor) -> Tensor:
        """t_z where the token time is t_x, float64; the least one where the latent falls while the tokens rest."""

    @abstractmethod
    def token_time(self, t_z_B: Tensor) -> Tensor:
        """t_x where the latent time is t_z, float64; the least one where the tokens fall while the latent rests."""

    @abstractmethod
    def steps(self, nfe: int, title: str) -> list[Step]:
        """Exactly `nfe` steps; `BudgetError` names `title` where they cannot be had."""


@dataclass(frozen=True)
class Lead(TimePath):
    """t_z = t_x^lead: 1 is the diagonal, above 1 the latent is resolved ahead of the tokens."""

    lead: float = 2.0

    @property
    def name(self) -> str:
        return f"joint, lead {self.lead:g}"

    def latent_time(self, t_x_B: Tensor) -> Tensor:
        return t_x_B**self.lead

    def token_time(self, t_z_B: Tensor) -> Tensor:
        return t_z_B ** (1.0 / self.lead)

    def steps(self, nfe: int, title: str) -> list[Step]:
        return joint_path(nfe, self.lead)


@dataclass(frozen=True)
class Polyline(TimePath):
    """Straight lines through `points`, cut into steps of equal length."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        check_points(self.points)

    @property
    def name(self) -> str:
        return "through " + ", ".join(f"({x:g}, {z:g})" for x, z in self.points[1:-1]) if self.points[2:] else "joint"

    def latent_time(self, t_x_B: Tensor) -> Tensor:
        return _between(t_x_B, [x for x, _ in self.points[::-1]], [z for _, z in self.points[::-1]])

    def token_time(self, t_z_B: Tensor) -> Tensor:
        return _between(t_z_B, [z for _, z in self.points[::-1]], [x for x, _ in self.points[::-1]])

    def steps(self, nfe: int, title: str) -> list[Step]:
        return through(self.points, nfe)


@dataclass(frozen=True)
class Offset(Polyline):
    """The latent runs ahead: clean from token time `offset` on; steps are equal in token time."""

    @property
    def name(self) -> str:
        return f"joint, offset {self.points[1][0]:g}"

    def steps(self, nfe: int, title: str) -> list[Step]:
        return offset_path(nfe, self.points[1][0])


@dataclass(frozen=True)
class LatentFirst(Polyline):
    """The L-shaped path: a share of the calls moves the latent with every token masked, the rest the tokens."""

    points: tuple[Point, ...] = ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    share: float = 0.5

    @property
    def name(self) -> str:
        return "latent-first"

    def steps(self, nfe: int, title: str) -> list[Step]:
        return latent_first_path(*split_calls(nfe, self.share, title))


def _between(at_B: Tensor, at_N: list[float], value_N: list[float]) -> Tensor:
    """Linear interpolation at `at_B` in rising `at_N`; where the values jump, the one before the jump."""
    at_B = at_B.double()
    knot_N = torch.tensor(at_N, dtype=torch.float64, device=at_B.device)
    value = torch.tensor(value_N, dtype=torch.float64, device=at_B.device)
    right_B = torch.searchsorted(knot_N, at_B.contiguous()).clamp(1, len(knot_N) - 1)
    start_B, width_B = knot_N[right_B - 1], knot_N[right_B] - knot_N[right_B - 1]
    share_B = torch.where(width_B > 0, (at_B - start_B) / width_B.clamp(min=1e-300), 0.0).clamp(0.0, 1.0)
    return value[right_B - 1] + share_B * (value[right_B] - value[right_B - 1])


def make_path(
    kind: str,
    lead: float = 2.0,
    offset: float = 0.3,
    latent_share: float = 0.5,
    corners: Sequence[float] = (),
) -> TimePath:
    """The path of a name in `KINDS`, each with its own parameter; `UserError` for corners that are no path.

    `corners` are token time and latent time of each corner of the path "through" in turn, the two ends left out.
    """
    if kind == "lead":
        return Lead(lead)
    if kind == "offset":
        return Offset(((1.0, 1.0), (offset, 0.0), (0.0, 0.0)))
    if kind == "latent_first":
        return LatentFirst(share=latent_share)
    if len(corners) % 2:
        raise UserError(f"corners={list(corners)} has {len(corners)} times; give them in pairs, such as [0.5, 0.1]")
    pairs = zip(map(float, corners[::2]), map(float, corners[1::2]), strict=True)
    return Polyline(((1.0, 1.0), *pairs, (0.0, 0.0)))
