"""The sampler of SEQ with noisy embeddings: a latent from the mixture, some steps down with its network, then the tokens.

Shapes: N sequences, L tokens, D dims of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from harness.config.fields import ranged
from harness.errors import BudgetError, UserError
from lddm.latent_first import LatentFirst
from lddm.seq_embedded import SEQEmbedded


@dataclass
class EmbeddedOptions:
    latent_share: float = ranged(0.5, 0, 1)  # of a budget K that goes to K_z; 0: the mixture's own latents
    start: float = ranged(0.0, 0, 1)  # time at which the mixture draws the latent; 0: the method's
    eta: float = ranged(0.0, 0, 1)  # 0 DDIM, 1 ancestral latent steps


class Embedded(LatentFirst):
    """K_z calls of the latent's network at equal steps of time from `start` to the method's `end`, then K_x of the decoder.

    The mixture's draw at `start` calls no network. With `latent_share` 0 it is made at `end`, and K = K_x.
    """

    Options: type = EmbeddedOptions
    options: EmbeddedOptions
    methods = SEQEmbedded
    method: SEQEmbedded

    def __init__(self, method: SEQEmbedded, options: EmbeddedOptions) -> None:
        super().__init__(method, options)
        end, highest = method.options.end, method.options.start
        self.start = (options.start or highest) if options.latent_share > 0 else end
        if not end <= self.start <= highest:
            raise UserError(
                f"sampler embedded: start={options.start} is not between the method's end={end} and its start={highest}, "
                f"where its network has learnt; choose {min(max(self.start, end), highest)}"
            )
        # Another start has another law than the one that the method's bound is of.
        self.bounded = self.start == highest

    @property
    def title(self) -> str:
        return self.method.title if self.start > self.method.options.end else "SEQ, embeddings of the mixture"

    def networks(self) -> Mapping[str, nn.Module]:
        own = super().networks()
        return own if self.start > self.method.options.end else {"token": own["token"]}

    def split(self, nfe: int) -> tuple[int, int]:
        if self.start > self.method.options.end:
            return super().split(nfe)
        if nfe < 1:
            raise BudgetError(f"nfe={nfe} cannot be met by {self.title}: tokens take a call at least; use 1")
        return 0, nfe

    def latents(self, n: int, calls: int, generator: torch.Generator, temperature: float) -> Tensor:
        """z_end (N, L, D)."""
        z_NLD = self.method.draw_start(n, self.start, generator)
        time = torch.linspace(self.start, self.method.options.end, calls + 1, dtype=torch.float64).tolist()
        for t, s in pairwise(time):
            t_N = torch.full((n,), t, dtype=torch.float64, device=z_NLD.device)
            z_NLD = self._step(z_NLD, t_N, t, s, generator)
        return z_NLD

    def _step(self, z_NLD: Tensor, t_N: Tensor, t: float, s: float, generator: torch.Generator) -> Tensor:
        """One call of the latent's network: z_t to z_s."""
        m = self.method
        return m.embedding.step(z_NLD, m.mean(z_NLD, t_N), t, s, self.options.eta, generator)
