"""ReMDM: tokens that were revealed may be masked again and drawn anew (Wang et al. 2025, arXiv 2503.00307, section 3).

In a step from alpha_t to alpha_s a shown token is masked with probability sigma, and a masked one is revealed with
`(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)`, so that a token is shown with probability alpha_s after it, whatever
sigma is (their eq. 3): sigma may be as large as `min(1, (1 - alpha_s) / alpha_t)`, and 0 is the ancestral sampler. "cap" takes
the smaller of that and `eta`, "rescale" `eta` times that. "loop" spends its middle calls at one alpha, masking and drawing
again, between an ancestral beginning and end; its sigma is that of "rescale".

Shapes: N sequences, L tokens, V symbols, M revealed positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from baselines.masked_model import MaskedModel
from baselines.samplers.top_p import nucleus
from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.errors import UserError
from harness.interface import Draw, Sampler
from harness.nn.slices import Logits


@dataclass
class RemaskOptions:
    kind: str = chosen("cap", ("cap", "rescale", "loop"))  # how sigma is chosen
    eta: float = ranged(0.02, 0, 1)  # the cap of sigma, or its share of what is possible
    p: float = ranged(1.0, 0, 1, above=True)  # tokens are drawn from the nucleus of this share; 1: from all
    on: float = ranged(0.55, 0, 1, above=True, below=True)  # time at which the loop begins
    off: float = ranged(0.05, 0, 1, above=True, below=True)  # time at which it ends
    alpha_on: float = ranged(0.9, 0, 1, above=True, below=True)  # share of tokens that are shown in the loop


@dataclass(frozen=True)
class Step:
    """From alpha_t to alpha_s, masking shown tokens with probability sigma."""

    alpha_t: float
    alpha_s: float
    sigma: float

    @property
    def reveal(self) -> float:
        """The probability with which a masked token is revealed."""
        if self.alpha_s == 1.0:
            return 1.0
        return (self.alpha_s - (1.0 - self.sigma) * self.alpha_t) / (1.0 - self.alpha_t)


class Remask(Sampler):
    """K steps, the last of which masks nothing and reveals all."""

    Options = RemaskOptions
    options: RemaskOptions
    methods = MaskedModel
    method: MaskedModel
    bounded = False

    def __init__(self, method: MaskedModel, options: RemaskOptions) -> None:
        super().__init__(method, options)
        if options.off >= options.on:
            raise UserError(
                f"off={options.off}: the loop ends after it begins, at on={options.on}; use off={options.on / 2}"
            )

    @property
    def title(self) -> str:
        return f"{self.method.title}, remasking ({self.options.kind})"

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def alphas(self, nfe: int) -> list[float]:
        """alpha at the ends of the steps, (K + 1) values from 0 to 1, equal ones within the loop."""
        o = self.options
        if o.kind != "loop" or nfe == 1:
            return masked.step_alphas(self.method.schedule, nfe)
        last = max(1, round(o.off * nfe))
        first = min(max(1, round((1.0 - o.on) * nfe)), nfe - last)
        up = [o.alpha_on * k / first for k in range(first)]
        down = [o.alpha_on + (1.0 - o.alpha_on) * k / last for k in range(1, last)]
        return [*up, *[o.alpha_on] * (nfe - first - last + 1), *down, 1.0]

    def steps(self, nfe: int) -> list[Step]:
        """The K steps."""
        o, alphas, found = self.options, self.alphas(nfe), []
        for alpha_t, alpha_s in zip(alphas, alphas[1:], strict=False):
            most = min(1.0, (1.0 - alpha_s) / alpha_t) if alpha_t else 0.0
            if o.kind == "loop" and alpha_t != alpha_s:
                most = 0.0
            found.append(Step(alpha_t, alpha_s, min(o.eta, most) if o.kind == "cap" else o.eta * most))
        return found

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        m, dtype = self.method, "float64"
        L, mask_id = m.problem.length, m.problem.vocab_size
        x_NL = torch.full((n, L), mask_id, dtype=torch.int64, device=generator.device)
        for step in self.steps(nfe):
            u_NL = torch.rand((n, L), generator=generator, dtype=masked.DRAW_DTYPE, device=generator.device)
            hidden_NL = x_NL == mask_id
            reveal_NL = hidden_NL & (u_NL < step.reveal)
            again_NL = ~hidden_NL & (u_NL < step.sigma)
            t_N = m.schedule.time(torch.full((n,), step.alpha_t, device=generator.device)).float()
            logits_MV = Logits.of(m.denoise(x_NL, reveal_NL, t_N))
            if self.options.p < 1:
                logits_MV = logits_MV.then(lambda logits_RV: nucleus(logits_RV, self.options.p, temperature))
            x_NL[reveal_NL], dtype = masked.draw_tokens(logits_MV, generator, temperature)
            x_NL[again_NL] = mask_id
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
