"""The sampler of FUJI with a discrete latent: tokens and codes revealed together along a path of their two times.

Shapes: N sequences, L tokens, S codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.diffusion import ancestral, masked
from harness.interface import Draw
from lddm.fuji_discrete import FUJIDiscrete
from lddm.samplers.path import OnPath, PathOptions


class JointCodes(ancestral.Filler, OnPath):
    """K calls along the path, each of which draws codes, tokens, or both apart from each other; the temperature is of both."""

    Options = PathOptions
    options: PathOptions
    methods = FUJIDiscrete
    method: FUJIDiscrete

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        """The network sees the shown tokens beside the masked codes, which are so drawn given them."""
        self.check_budget(nfe)
        m, mask_id, mask_code = self.method, self.method.problem.vocab_size, self.method.options.codes
        x_NL = x_NL.masked_fill(hidden_NL, mask_id)
        c_NS = ancestral.blank(len(x_NL), m.options.slots, mask_code, generator.device)
        dtype, steps = "float64", self.steps(nfe)
        for step in steps:
            flips_NL = self.flips(x_NL, mask_id, step.t_x, step.s_x, generator)
            flips_NS = self.flips(c_NS, mask_code, step.t_z, step.s_z, generator)
            tokens, codes = m.network(x_NL, c_NS, m.mixture, flips_NL, flips_NS)
            x_NL[flips_NL], dtype = masked.draw_tokens(tokens, generator, temperature)
            c_NS[flips_NS], _ = masked.draw_tokens(codes, generator, temperature)
            del tokens, codes  # else they would still be there in the next call
        token_calls = sum(step.moves_tokens for step in steps)
        return Draw(x_NL, nfe_latent=nfe - token_calls, nfe_token=token_calls, draw_dtype=dtype)
