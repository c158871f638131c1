"""The ancestral sampler of uniform-state diffusion: exact reverse steps at equal distances in time.

Every token may change again in each. The last step draws each token ("ancestral"), or takes the likeliest ("greedy"): its
kind is part of a number.

Shapes: N sequences, L tokens, V symbols, M = N L positions in row-major order, R of them in a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from baselines.udlm import UDLM
from harness.config.fields import chosen
from harness.diffusion import masked, uniform
from harness.interface import Draw, Sampler


@dataclass
class UniformOptions:
    last: str = chosen("ancestral", ("ancestral", "greedy"))  # how the last step chooses tokens


class Uniform(Sampler):
    """K reverse steps from uniform tokens."""

    Options = UniformOptions
    options: UniformOptions
    methods = UDLM
    method: UDLM

    @property
    def title(self) -> str:
        return self.method.title if self.options.last == "ancestral" else f"{self.method.title}, greedy last step"

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        m, dtype = self.method, "float64"
        z_NL = torch.randint(m.problem.vocab_size, (n, m.problem.length), generator=generator, device=generator.device)
        for k, (alpha_t, alpha_s) in enumerate(pairwise(masked.step_alphas(m.schedule, nfe))):
            t_N = torch.full((n,), 1.0 - k / nfe, device=generator.device, dtype=torch.float64)
            logits_MV, alpha_M = m.leave_one_out(z_NL, z_NL, t_N)
            z_M = z_NL.flatten()
            if alpha_s == 1.0 and self.options.last == "greedy":
                after_MV = logits_MV.then(
                    lambda loo_RV, *of_R: uniform.with_own(loo_RV / temperature, *of_R), z_M, alpha_M
                )
                z_M = masked.by_rows(lambda after_RV: after_RV.argmax(-1), after_MV)
            else:
                u_M3 = torch.rand((len(z_M), 3), generator=generator, dtype=masked.DRAW_DTYPE, device=z_M.device)
                step = partial(uniform.draw_step, alpha_t=alpha_t, alpha_s=alpha_s, temperature=temperature)
                z_M, dtype = masked.by_rows(step, logits_MV, z_M, u_M3), str(u_M3.dtype).removeprefix("torch.")
            z_NL = z_M.view(z_NL.shape)
        return Draw(z_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
