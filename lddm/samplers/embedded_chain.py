"""SEQ with noisy embeddings over n-grams, whose calls draw all tokens together: of the latent, and then of the tokens.

Where the law is a Markov chain, what a noisy latent says of each token and what a network adds to it are potentials beside
the chain, and a sequence is drawn from all of it at once (forward filtering, backward sampling). A latent's call draws such
a sequence and not a mean, and the next, less noisy latent is drawn given it (the ancestral step). A network that adds
nothing draws the chain's own sequences exactly, in any number of calls. Networks are trained for each token by itself, so
that what they add is not the best for this use of it.

Shapes: N sequences, L tokens, V symbols, D dims of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.diffusion import ancestral, masked
from harness.errors import UserError
from harness.interface import Draw
from harness.nn.markov_chain import MarkovChain
from lddm.samplers.embedded import Embedded
from lddm.seq_embedded import SEQEmbedded


@dataclass
class EmbeddedChainOptions:
    latent_share: float = ranged(0.5, 0, 1)  # of a budget K that goes to K_z; 0: the chain's own latents
    start: float = ranged(0.0, 0, 1)  # time at which the chain draws the latent; 0: the method's


class EmbeddedChain(Embedded):
    """K_z calls of the latent's network from `start` to the method's `end`, then K_x of the decoder, all of whole sequences."""

    Options = EmbeddedChainOptions

    def __init__(self, method: SEQEmbedded, options: EmbeddedChainOptions) -> None:
        super().__init__(method, options)  # type: ignore[arg-type]
        if not isinstance(method.law, MarkovChain):
            raise UserError(
                f"sampler embedded_chain draws tokens together under n-grams, and law={method.options.law} has none; "
                "use law=chain or sampler embedded"
            )
        # What is drawn together is not what the method's bound is of.
        self.bounded = False

    @property
    def title(self) -> str:
        return f"{super().title}, tokens together"

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        """At a temperature T the joint law of a token call to the power 1 / T; the latent is drawn at 1."""
        latent_calls, token_calls = self.split(nfe)
        m, p = self.method, self.method.problem
        z_NLD = self.latents(n, latent_calls, generator, temperature)
        draw = self._drawer(generator, temperature)
        start_NL = ancestral.blank(n, p.length, p.vocab_size, z_NLD.device)
        alphas = masked.step_alphas(m.schedule, token_calls)
        x_NL = ancestral.sample_together(
            lambda x_NL: draw(m.token_potentials(x_NL, z_NLD)), start_NL, p.vocab_size, alphas, generator
        )
        return Draw(x_NL, nfe_latent=latent_calls, nfe_token=token_calls)

    def _step(self, z_NLD: Tensor, t_N: Tensor, t: float, s: float, generator: torch.Generator) -> Tensor:
        m = self.method
        x_NL = self._drawer(generator, 1.0)(m.latent_potentials(z_NLD, t_N))
        return m.embedding.step(z_NLD, m.embedding.embedding_VD[x_NL], t, s, 1.0, generator)

    def _drawer(self, generator: torch.Generator, temperature: float) -> Callable[[Tensor], Tensor]:
        """Sequences (N, L) from potentials (N, L, V)."""
        assert isinstance(self.method.law, MarkovChain)
        chain = self.method.law.tempered(temperature)
        return lambda potentials_NLV: chain.draw_given(potentials_NLV / temperature, generator)
