"""The sampler of SEQ with a discrete latent: codes by masked diffusion, then the tokens given them.

Shapes: N sequences, L tokens, S codes out of M, R selected ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.diffusion import ancestral, masked
from harness.interface import Draw
from harness.nn.slices import Logits
from lddm.latent_first import LatentFirst
from lddm.seq_discrete import SEQDiscrete


@dataclass
class CodesOptions:
    latent_share: float = ranged(0.2, 0, 1)  # of a budget K that goes to the codes, one call at least and S at most


class Codes(LatentFirst):
    """K_z calls of the prior over S codes, then K_x calls of the decoder; the temperature is that of both draws."""

    Options = CodesOptions
    options: CodesOptions
    methods: type = SEQDiscrete
    method: SEQDiscrete

    def __init__(self, method: SEQDiscrete, options: CodesOptions) -> None:
        super().__init__(method, options)
        self.fills = method.mixture.fills

    def split(self, nfe: int) -> tuple[int, int]:
        """(K_z, K_x); more calls than codes would reveal none."""
        latent, _ = super().split(nfe)
        latent = min(latent, self.method.options.slots)
        return latent, nfe - latent

    def latents(self, n: int, calls: int, generator: torch.Generator, temperature: float) -> Tensor:
        """Codes (N, S)."""
        return self._codes(n, None, calls, generator, temperature)

    def _codes(
        self, n: int, seen_NSM: Tensor | None, calls: int, generator: torch.Generator, temperature: float
    ) -> Tensor:
        """Codes (N, S), given the log probability of what is seen of each segment under each of them."""
        m, o = self.method, self.method.options

        def denoise(c_NS: Tensor, select_NS: Tensor, t_N: Tensor) -> Logits:
            logits_RM = m.prior(c_NS, m.mixture, select_NS)
            return logits_RM if seen_NSM is None else logits_RM.then(torch.add, seen_NSM[select_NS])

        start_NS, alphas = ancestral.blank(n, o.slots, o.codes, generator.device), masked.step_alphas(m.schedule, calls)
        return ancestral.sample(denoise, start_NS, o.codes, alphas, generator, temperature)[0]

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        """Codes given the shown tokens, by Bayes' rule with the mixture's laws of them, then the hidden tokens."""
        latent_calls, token_calls = self.split(nfe)
        m = self.method
        seen_NSM = m.mixture.seen(x_NL.reshape(-1, m.mixture.segment), ~hidden_NL.reshape(-1, m.mixture.segment))
        seen_NSM = seen_NSM.view(len(x_NL), m.options.slots, -1)
        c_NS = self._codes(len(x_NL), seen_NSM, latent_calls, generator, temperature)
        start_NL = x_NL.masked_fill(hidden_NL, m.problem.vocab_size)
        x_NL, dtype = m.draw_tokens(c_NS, token_calls, generator, temperature, self.denoiser(c_NS), start_NL)
        return Draw(x_NL, nfe_latent=latent_calls, nfe_token=token_calls, draw_dtype=dtype)
