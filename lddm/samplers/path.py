"""FUJI's sampler: tokens and latent move together along a path of their two times, one call of the joint network a step.

Shapes: N sequences, L tokens, S slots, D dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.errors import UserError
from harness.interface import Bound, Draw, Sampler
from lddm import gaussian
from lddm.fuji import FUJI
from lddm.latent import gaussian_noise, predicted_z0
from lddm.paths import KINDS, Lead, Step, make_path

TITLES = {"lead": "", "offset": ", offset", "latent_first": ", latent-first", "through": ", polyline"}


@dataclass
class PathOptions:
    path: str = chosen("lead", KINDS)  # see lddm.paths
    lead: float | None = ranged(None, 0, above=True)  # of path "lead": latent time is token time to it; none: the own
    offset: float = ranged(0.3, 0, 1, below=True)  # of path "offset": the token time from which on the latent is clean
    latent_share: float = ranged(0.5, 0, 1)  # of path "latent_first": the part of a budget that moves the latent
    corners: list[float] = ranged([], 0, 1)  # of path "through": token time and latent time of each in turn


@dataclass
class AlongPathOptions(PathOptions):
    eta: float = ranged(1.0, 0, 1)  # 0 DDIM, 1 ancestral latent steps


class OnPath(Sampler):
    """K calls along a path: each moves the latent, reveals tokens, or both; the last tokens go all at once."""

    method: Any
    options: Any

    def __init__(self, method: Any, options: Any) -> None:
        super().__init__(method, options)
        o = options
        lead = method.options.lead if o.lead is None else o.lead
        self.path = make_path(o.path, lead, o.offset, o.latent_share, o.corners)
        if method.options.times == "path" and self.path != Lead(method.options.lead):
            raise UserError(
                f"sampler path={self.path.name}: the network was trained on '{method.path.name}' alone; choose "
                "times=independent, or path=lead without a lead of its own"
            )

    @property
    def title(self) -> str:
        return self.method.title + TITLES[self.options.path]

    def networks(self) -> Mapping[str, nn.Module]:
        return {"joint": self.method.token_network()}

    def check_budget(self, nfe: int) -> None:
        if self.options.path != "latent_first":  # which says itself that two calls are the least
            super().check_budget(nfe)
        self.steps(nfe)

    def steps(self, nfe: int) -> list[Step]:
        """One for each call."""
        return self.path.steps(nfe, self.title)

    def flips(self, x_NL: Tensor, mask_id: int, t: float, s: float, generator: torch.Generator) -> Tensor:
        """Which masks of one of the two are revealed between times t and s, (N, L) bool; none where it rests."""
        if s == t:
            return torch.zeros_like(x_NL, dtype=torch.bool)
        alpha_t, alpha_s = self.method.schedule.alpha(torch.tensor([t, s], dtype=torch.float64)).tolist()
        return masked.choose_flips(x_NL == mask_id, max(alpha_t, 0.0), alpha_s, generator)

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        return self.method.bound(x_BL, generator, self.path)


class AlongPath(OnPath):
    """FUJI's own."""

    Options = AlongPathOptions
    methods = FUJI

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        m, o, mask_id = self.method, self.method.options, self.method.problem.vocab_size
        z_NSD = gaussian_noise((n, o.slots, o.dims), generator)
        x_NL = torch.full((n, m.problem.length), mask_id, dtype=torch.int64, device=z_NSD.device)
        dtype, zero_N, steps = "float64", torch.zeros(n, device=z_NSD.device), self.steps(nfe)
        for step in steps:
            flips_NL = self.flips(x_NL, mask_id, step.t_x, step.s_x, generator)
            logits_MV, out_NSD = m.network(x_NL, z_NSD, zero_N + step.t_x, zero_N + step.t_z, flips_NL)
            if step.moves_tokens:
                x_NL[flips_NL], dtype = masked.draw_tokens(logits_MV, generator, temperature)
            del logits_MV  # else they would still be there in the next call
            if step.moves_latent:
                z0_hat = predicted_z0(out_NSD, z_NSD, zero_N + step.t_z, m.latent_schedule, o.prediction)
                z_NSD = gaussian.latent_step(
                    z_NSD, z0_hat, step.t_z, step.s_z, m.latent_schedule, self.options.eta, generator
                )
        token_calls = sum(step.moves_tokens for step in steps)
        return Draw(x_NL, nfe_latent=nfe - token_calls, nfe_token=token_calls, draw_dtype=dtype)
