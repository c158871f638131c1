"""Tokens of one call drawn together: the ancestral sampler of a masked model whose call gives a law of all of them.

Shapes: N sequences, L tokens, V symbols (id V is the mask).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from baselines.mdlm_chain import MDLMChain
from baselines.samplers.ancestral import Ancestral
from harness.config.fields import NoOptions
from harness.diffusion import masked
from harness.diffusion.ancestral import sample_together
from harness.interface import Draw
from harness.nn.markov_chain import at, certain


class Chain(Ancestral):
    """K steps, as in `ancestral`: which positions are revealed is drawn blindly, what stands there jointly."""

    Options = NoOptions
    methods = MDLMChain
    method: MDLMChain

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        """At a temperature T the joint law of a call to the power 1 / T."""
        self.check_budget(nfe)
        m, mask_id = self.method, self.method.problem.vocab_size
        chain = m.chain.tempered(temperature)

        def together(x_NL: Tensor) -> Tensor:
            return chain.draw_given(m.evidence(x_NL) / temperature, generator)

        start_NL = x_NL.masked_fill(hidden_NL, mask_id)
        x_NL = sample_together(together, start_NL, mask_id, self.alphas(nfe), generator)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe)

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor:
        """Of a step's tokens the joint probability: what the evidence is worth with them known, over what it was before."""
        self.check_budget(nfe)
        m, mask_id = self.method, self.method.problem.vocab_size
        masked_BL = torch.ones_like(x_BL, dtype=torch.bool)
        nll_B = torch.zeros(len(x_BL), dtype=torch.float64, device=x_BL.device)
        for alpha_t, alpha_s in pairwise(self.alphas(nfe)):
            flips_BL = masked.choose_flips(masked_BL, alpha_t, alpha_s, generator)
            evidence_BLV = m.evidence(torch.where(masked_BL, mask_id, x_BL))
            own_BL = at(evidence_BLV, x_BL)
            after_BLV = torch.where(flips_BL[..., None], own_BL[..., None] + certain(x_BL, mask_id), evidence_BLV)
            nll_B += (m.chain.evidence_log_p(evidence_BLV) - m.chain.evidence_log_p(after_BLV)).double()
            masked_BL = masked_BL & ~flips_BL
        return nll_B
