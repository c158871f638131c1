"""SEQ with noisy embeddings: a Gaussian latent that names the tokens through a fog, resolved first, then the tokens given it.

The continuous arm of LDDM (Shariatian et al., arXiv 2510.18114, SEQ) with an encoder in closed form, `TokenEmbedding`, and a
prior that starts where a law in closed form is: a `ProductMixture` of segments, or a `MarkovChain` of n-grams. Given a noisy
latent its posterior of all tokens is an exact finite sum, so that the ideal denoiser of that law costs no training; networks
learn what it leaves open. Its law of z_t is known too: the way down may begin at any time `start` with a draw from it, and
only the rest takes calls (a truncated diffusion: Zheng et al. 2022, arXiv 2202.09671). It ends at `end`, where the rest of
the tokens' information is left to masked diffusion beside the latent.

Shapes: B batch, L tokens in segments of C, V symbols, D dims of an embedding, N sequences, R selected positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.diffusion import masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import stratified_times
from harness.interface import Bound, Loss, Problem, Stage
from harness.nn.markov_chain import MarkovChain, at, certain
from harness.nn.slices import Logits, by_sequences
from lddm import instruments
from lddm.bank import CodeBank
from lddm.embedded_networks import EmbeddingDecoder, EmbeddingDenoiser
from lddm.embedded_options import SEQEmbeddedOptions, check
from lddm.latent import token_times
from lddm.latent_model import LatentModel
from lddm.mixture import ProductMixture
from lddm.networks import small_shape
from lddm.token_embedding import TokenEmbedding


class SEQEmbedded(LatentModel):
    """p(z_end) by Gaussian diffusion from the law's own at `start`, p(x | z_end) by masked diffusion beside it."""

    Options = SEQEmbeddedOptions
    title = "SEQ, noisy embeddings"
    encoder_title = "SEQ, encoder embeddings"

    def __init__(self, problem: Problem, options: SEQEmbeddedOptions) -> None:
        super().__init__(problem, options)
        check(options, problem)
        o, V, shape = options, problem.vocab_size, problem.shape
        self.embedding = TokenEmbedding(V, o.dims)
        chain = o.law == "chain"
        self.law = MarkovChain(o.order, problem.length, V) if chain else ProductMixture(o.codes, o.segment, V)
        self.decoder = EmbeddingDecoder(shape, V, o.dims)
        small = replace(small_shape(shape, o.prior_depth, o.prior_width), stem=0)
        self.prior = EmbeddingDenoiser(small, V, problem.length, o.patch, o.dims)
        self.bank = CodeBank(o.bank, problem.length)
        self._stage = "tokens"

    # ---- training -------------------------------------------------------------------------------------------------
    @property
    def has_chain(self) -> bool:
        """Whether there is a way from `start` to `end`."""
        return self.options.start > self.options.end

    def stages(self) -> tuple[Stage, ...]:
        share = self.options.prior_share if self.has_chain else 0.0
        return Stage("tokens", 1.0 - share), *((Stage("prior", share),) if share else ())

    def set_stage(self, name: str) -> None:
        self._stage = name
        self.decoder.requires_grad_(name == "tokens")
        self.prior.requires_grad_(name == "prior")

    def fit(self, train_NL: np.ndarray) -> None:
        """Embeddings from the neighbours of each symbol; the law by EM or by counting."""
        o = self.options
        self.embedding.fit(train_NL)
        if isinstance(self.law, MarkovChain):
            self.law.fit(train_NL)
        else:
            self.law.fit_sequences(train_NL, o.em_segments, o.em_steps, o.smoothing)

    def fitted_numbers(self) -> int:
        return self.law.fitted_numbers() + self.embedding.embedding_VD.numel()

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """Fills a bank that no training step has filled."""
        if self.bank.filled == 0:
            self.bank.put(x_NL)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """By stage: tokens given the latent, or given a noisy latent alone; nats per token."""
        o, B = self.options, len(x_BL)
        self.bank.put(x_BL)
        if self._stage == "tokens":
            late_B = torch.rand(B, generator=generator, dtype=torch.float64, device=x_BL.device) * 2.0 - 1.0
            t_z_B = o.end + late_B.clamp(min=0.0) * min(o.latent_jitter, 1.0 - o.end)
            t_B = token_times(B, o.full_mask, generator, self.largest_time)
            if o.joint:
                z_BLD, xt_BL, masked_BL = self._noisy(x_BL, t_z_B, t_B, generator)
                return self._joint_loss("token", self.token_potentials(xt_BL, z_BLD, t_z_B), x_BL, masked_BL)
            terms = self._token_terms(x_BL, t_z_B, t_B, generator)
            mean = terms.nll_B.sum() / terms.count_B.sum().clamp(min=1)
            return Loss(terms.loss(o.loss, x_BL.shape[1]), {"token_nats_per_token": mean.detach()})
        x_BL = self.bank.draw(o.latent_batch, generator)
        t_B = o.end + (o.start - o.end) * stratified_times(len(x_BL), generator)
        z_BLD = self.embedding.diffuse(x_BL, t_B, generator)
        if o.joint:
            return self._joint_loss("latent", self.latent_potentials(z_BLD, t_B), x_BL, torch.ones_like(x_BL).bool())
        nll = F.nll_loss(self.log_p(z_BLD, t_B).flatten(0, 1), x_BL.flatten())
        return Loss(nll, {"latent_nats_per_token": nll.detach()})

    def _joint_loss(self, name: str, potentials_BLV: Tensor, x_BL: Tensor, open_BL: Tensor) -> Loss:
        """Nats for an open token of how likely all of them are together."""
        assert isinstance(self.law, MarkovChain)
        mean = self.law.joint_nll(potentials_BLV, x_BL, open_BL) / open_BL.sum().clamp(min=1)
        return Loss(mean, {f"{name}_joint_nats_per_token": mean.detach()})

    def _noisy(
        self, x_BL: Tensor, t_z_B: Tensor, t_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents at times t_z (B, L, D), tokens at times t (B, L), and where those are masked (B, L)."""
        z_BLD = self.embedding.diffuse(x_BL, t_z_B, generator)
        return z_BLD, *masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)

    # ---- the latent -----------------------------------------------------------------------------------------------
    def _base(self, evidence_BLV: Tensor) -> tuple[Tensor, Tensor]:
        """The law's log p(x_i | evidence), (B, L, V), and the log probability of all evidence, (B,)."""
        B, L, V = evidence_BLV.shape
        log_p_NCV, log_N = self.law.posterior(evidence_BLV.reshape(-1, self.law.segment, V))
        return log_p_NCV.reshape(B, L, V), log_N.view(B, -1).sum(1)

    def _read(self, z_BLD: Tensor, t_B: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """What `read` makes of the prior's log p(x_i | z_t), (B, L, V) float32, which need not be held for all sequences."""

        def law(added_BLV: Tensor, base_BLV: Tensor, z_BLD: Tensor, t_B: Tensor) -> Tensor:
            if self.options.joint:
                return read(self._base(self.embedding.evidence(z_BLD, t_B) + added_BLV)[0])
            return read((added_BLV + base_BLV).log_softmax(-1))

        return self._prior(z_BLD, t_B, law)

    def _prior(self, z_BLD: Tensor, t_B: Tensor, read: Callable[..., Tensor]) -> Tensor:
        """One call of the latent's network; see `EmbeddingDenoiser.forward`."""

        def base(z_BLD: Tensor, t_B: Tensor) -> Tensor:
            return self._base(self.embedding.evidence(z_BLD, t_B))[0]

        return self.prior(z_BLD, t_B, base, self.embedding.log_prior_V.exp(), read)

    def log_p(self, z_BLD: Tensor, t_B: Tensor) -> Tensor:
        """The prior's log p(x_i | z_t), (B, L, V) float32."""
        return self._read(z_BLD, t_B, lambda log_p_BLV: log_p_BLV)

    def mean(self, z_BLD: Tensor, t_B: Tensor) -> Tensor:
        """The prior's E[e_x | z_t], (B, L, D) float32."""
        return self._read(z_BLD, t_B, self.embedding.mean)

    # ---- tokens together, where the law is a chain ------------------------------------------------------------------
    def latent_potentials(self, z_BLD: Tensor, t_B: Tensor) -> Tensor:
        """What z_t says of each token and what the prior adds to the chain, (B, L, V): logits of `MarkovChain.draw_given`."""

        def read(added_BLV: Tensor, base_BLV: Tensor, z_BLD: Tensor, t_B: Tensor) -> Tensor:
            return self.embedding.evidence(z_BLD, t_B) + added_BLV

        return self._prior(z_BLD, t_B, read)

    def token_potentials(self, x_BL: Tensor, z_BLD: Tensor, t_z_B: Tensor | None = None) -> Tensor:
        """The same of the decoder at masked positions, beside latents of time `end` unless said; what is shown is certain."""
        t_z_B = self._times(len(x_BL), self.options.end, z_BLD) if t_z_B is None else t_z_B
        hidden_BL, evidence_BLV = x_BL == self.problem.vocab_size, self.evidence(x_BL, z_BLD, t_z_B)
        added = self._decoder(x_BL, z_BLD, t_z_B, torch.ones_like(hidden_BL), alone=True)
        added_BLV = added.whole().view(evidence_BLV.shape)
        return torch.where(hidden_BL[..., None], evidence_BLV + added_BLV, evidence_BLV)

    def draw_start(self, n: int, start: float, generator: torch.Generator) -> Tensor:
        """z_start of `n` sequences under the law, (n, L, D): its tokens, diffused. No network is called."""
        segments = self.law.draw(n * (self.problem.length // self.law.segment), generator)
        x_NL = segments.view(n, self.problem.length)
        return self.embedding.diffuse(x_NL, self._times(n, start, x_NL), generator)

    @staticmethod
    def _times(n: int, t: float, like: Tensor) -> Tensor:
        return torch.full((n,), t, dtype=torch.float64, device=like.device)

    # ---- tokens given the latent ----------------------------------------------------------------------------------
    def evidence(self, x_BL: Tensor, z_BLD: Tensor, t_z_B: Tensor) -> Tensor:
        """What is seen of each token, (B, L, V): the latent where it is masked, itself where it is not."""
        V = self.problem.vocab_size
        return torch.where((x_BL < V)[..., None], certain(x_BL, V), self.embedding.evidence(z_BLD, t_z_B))

    def _token_logits(self, x_BL: Tensor, z_BLD: Tensor, t_z_B: Tensor, select_BL: Tensor) -> Logits:
        """Logits (R, V) of tokens given the latent and the tokens that are known."""
        if self.options.joint:
            return Logits.of(self._base(self.token_potentials(x_BL, z_BLD, t_z_B))[0][select_BL])
        return self._decoder(x_BL, z_BLD, t_z_B, select_BL)

    def _decoder(self, x_BL: Tensor, z_BLD: Tensor, t_z_B: Tensor, select_BL: Tensor, alone: bool = False) -> Logits:
        """One call of the tokens' network; see `EmbeddingDecoder.forward`."""

        def base(x_BL: Tensor, z_BLD: Tensor, t_z_B: Tensor) -> Tensor:
            return self._base(self.evidence(x_BL, z_BLD, t_z_B))[0]

        centre_V = self.embedding.log_prior_V.exp()
        return self.decoder(x_BL, z_BLD, t_z_B, base, self.law.segment, centre_V, select_BL, alone)

    def _token_terms(self, x_BL: Tensor, t_z_B: Tensor, t_B: Tensor, generator: torch.Generator) -> masked.MaskedTerms:
        """Cross-entropies of masked tokens at times t, given latents at times t_z."""
        z_BLD, xt_BL, masked_BL = self._noisy(x_BL, t_z_B, t_B, generator)

        def nll(xt_BL: Tensor, z_BLD: Tensor, t_z_B: Tensor, masked_BL: Tensor, x_BL: Tensor) -> Tensor:
            return masked.masked_nll(self._token_logits(xt_BL, z_BLD, t_z_B, masked_BL), x_BL, masked_BL)

        nll_B = by_sequences(nll, xt_BL, z_BLD, t_z_B, masked_BL, x_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_B))

    def token_network(self) -> nn.Module:
        return self.decoder

    def denoiser(self, latent: Tensor) -> Denoiser:
        t_z_N = self._times(len(latent), self.options.end, latent)
        return lambda x_NL, select_NL, t_N: self._token_logits(x_NL, latent, t_z_N, select_NL)

    def encoded(self, n: int, generator: torch.Generator) -> Tensor:
        x_NL = self.bank.draw(n, generator)
        return self.embedding.diffuse(x_NL, self._times(n, self.options.end, x_NL), generator)

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """KL(q(z_start | x) || law) + 1/2 integral of d(1/rho^2) E|e_x - E[e_x | z_t]|^2 + tokens given z_end.

        The integral (VDM, eq. 15) is drawn at one time for each sequence, uniform in log rho.
        """
        o, B = self.options, len(x_BL)
        start_B, end_B = self._times(B, o.start, x_BL), self._times(B, o.end, x_BL)

        def start_nats(x_BL: Tensor, z_BLD: Tensor, start_B: Tensor) -> Tensor:
            evidence_BLV = self.embedding.evidence(z_BLD, start_B)
            own_B = at(evidence_BLV, x_BL).double().sum(1)
            return own_B - self._base(evidence_BLV)[1].double()

        z_BLD = self.embedding.diffuse(x_BL, start_B, generator)
        parts = {"latent_start": by_sequences(start_nats, x_BL, z_BLD, start_B, width=self.problem.vocab_size)}
        if self.has_chain:
            low, high = self.embedding.log_rho(torch.tensor([o.end, o.start], device=x_BL.device)).tolist()
            log_rho_B = low + (high - low) * stratified_times(B, generator)
            t_B = self.embedding.time_of(log_rho_B)
            z_BLD = self.embedding.diffuse(x_BL, t_B, generator)
            error_BLD = self.embedding.embedding_VD[x_BL] - self.mean(z_BLD, t_B)
            square_B = error_BLD.double().square().flatten(1).sum(1)
            parts["latent"] = (high - low) * (-2.0 * self.embedding.log_rho(t_B)).exp() * square_B
        tokens = self._token_terms(x_BL, end_B, token_times(B, 0.0, generator), generator)
        parts["tokens"] = tokens.nelbo_B.double()
        return Bound.of_parts(parts, "NELBO with latent terms, one time per sequence and channel")

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        """What a latent of each time leaves open for the prior and for one token call, nats per sequence."""
        few_BL = x_BL[: instruments.FEW]
        all_B = self._times(len(few_BL), 1.0, few_BL)

        def latent_nats(t: float) -> float:
            t_B = self._times(len(few_BL), t, few_BL)
            log_p_BLV = self.log_p(self.embedding.diffuse(few_BL, t_B, generator), t_B)
            return -float(at(log_p_BLV, few_BL).sum()) / len(few_BL)

        def nats(t_z: float) -> float:
            return float(
                self._token_terms(few_BL, self._times(len(few_BL), t_z, few_BL), all_B, generator).nll_B.mean()
            )

        return {
            "latent_nats_saved": nats(1.0) - nats(self.options.end),
            **instruments.by_time(latent_nats, "latent_loss", (0.25, 0.5, 0.75, 1.0)),
            **instruments.by_time(nats, "token_loss", (0.25, 0.5, 0.75, 1.0)),
        }
