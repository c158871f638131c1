"""SEQ with a latent that is drawn in one call, by the network that `lddm.one_call` trains; then the tokens given it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from harness.config.fields import NoOptions
from harness.errors import BudgetError, UserError
from harness.interface import Draw, Sampler
from lddm.seq import SEQ


class OneCall(Sampler):
    """One call of the one-call network, then K - 1 calls of the decoder. The law of its latents has no density to bound."""

    Options = NoOptions
    methods = SEQ
    method: SEQ
    bounded = False

    def __init__(self, method: SEQ, options: NoOptions) -> None:
        super().__init__(method, options)
        if method.generator is None:
            raise UserError(
                "sampler one_call needs a network that learns it; choose one_call_share above 0, such as 0.3"
            )
        self._network = method.generator

    @property
    def title(self) -> str:
        return f"{self.method.title}, one-call latent"

    def networks(self) -> Mapping[str, nn.Module]:
        return {"latent": self._network, "token": self.method.token_network()}

    def check_budget(self, nfe: int) -> None:
        if nfe < 2:
            raise BudgetError(
                f"nfe={nfe} cannot be met by {self.title}: it needs a latent call and a token call; use 2 or more"
            )

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        z_NSD = self._network.draw(n, self.method.encoder.noise, generator)
        x_NL, dtype = self.method.draw_tokens(z_NSD, nfe - 1, generator, temperature)
        return Draw(x_NL, nfe_latent=1, nfe_token=nfe - 1, draw_dtype=dtype)
