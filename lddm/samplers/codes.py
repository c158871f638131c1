"""The sampler of SEQ with a discrete latent: codes by masked diffusion, then the tokens given them.

Shapes: N sequences, S codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from harness.config.fields import ranged
from harness.diffusion import ancestral, masked
from harness.interface import Draw, Sampler
from lddm.paths import split_calls
from lddm.seq_discrete import SEQDiscrete


@dataclass
class CodesOptions:
    latent_share: float = ranged(0.2, 0, 1)  # of a budget K that goes to the codes, one call at least and S at most


class Codes(Sampler):
    """K_z calls of the prior over S codes, then K_x calls of the decoder; the temperature is that of both draws."""

    Options = CodesOptions
    options: CodesOptions
    methods = SEQDiscrete
    method: SEQDiscrete

    def networks(self) -> Mapping[str, nn.Module]:
        return {"latent": self.method.prior, "token": self.method.token_network()}

    def _split(self, nfe: int) -> tuple[int, int]:
        """(K_z, K_x); more calls than codes would reveal none."""
        latent, _ = split_calls(nfe, self.options.latent_share, self.title)
        latent = min(latent, self.method.options.slots)
        return latent, nfe - latent

    def check_budget(self, nfe: int) -> None:
        self._split(nfe)

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        latent_calls, token_calls = self._split(nfe)
        m, o = self.method, self.method.options
        alphas = masked.step_alphas(m.schedule, latent_calls)
        c_NS, _ = ancestral.sample(
            lambda c_NS, select_NS, t_N: m.prior(c_NS, m.mixture, select_NS),
            (n, o.slots), o.codes, alphas, generator, temperature,
        )  # fmt: skip
        x_NL, dtype = m.draw_tokens(c_NS, token_calls, generator, temperature)
        return Draw(x_NL, nfe_latent=latent_calls, nfe_token=token_calls, draw_dtype=dtype)
