"""SEQ with a discrete latent: a code for each segment is resolved first, by masked diffusion, then the tokens given them.

The discrete arm of LDDM (Shariatian et al., arXiv 2510.18114) with an encoder in closed form: q(c | x) is the posterior of a
`ProductMixture` of segments, p(c) is masked diffusion over the codes, p(x | c) masked diffusion over the tokens beside them.
A code costs no noise and cannot collapse, and one call from all masks draws codes by their true frequencies, where one
Gaussian step returns their mean: so that two calls, one for each part, are enough for text that holds together locally.

In what was measured it is a static mixture and a masked decoder: p(c) hardly improves on the mixture's weights.

Shapes: B batch, L tokens in S segments of C, V symbols, M codes, N sequences, R selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times
from harness.errors import UserError
from harness.interface import Bound, Loss, Problem, Stage
from harness.nn.slices import by_sequences
from lddm import instruments
from lddm.bank import CodeBank
from lddm.code_networks import CodeDecoder, CodeNetwork
from lddm.codebook import Codebook
from lddm.latent import token_times
from lddm.latent_model import LatentModel
from lddm.mixture import ProductMixture


@dataclass
class SegmentCodesOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)  # of tokens and codes
    loss: str = chosen("masked_mean", masked.LOSSES)  # of tokens and codes; see harness.diffusion.masked.MaskedTerms
    slots: int = ranged(8, 1, 4096)  # segments, of about a word (8 characters, 2 to 4 BPE tokens); divides the length
    full_mask: float = ranged(0.15, 0, 1)  # share of a batch with every token (or code) masked, where few calls start
    prior_share: float = ranged(0.25, 0.01, 0.99)  # of the steps, after the tokens; none where there is one slot
    latent_batch: int = ranged(128, 2, 1 << 20)  # sequences of codes in a step of the prior, from a bank
    bank: int = ranged(16384, 2, 1 << 24)


@dataclass
class SEQDiscreteOptions(SegmentCodesOptions):
    codes: int = ranged(4096, 2, 1 << 20)  # components of the mixture
    em_steps: int = ranged(4, 1, 1000)
    em_segments: int = ranged(262144, 1, 1 << 30)  # at most so many, chosen at random in the training budget
    smoothing: float = ranged(0.16, 1e-6, 1e6)  # segments of the marginal law that each component is given


#: Entries of the mixture's tables: 2 GiB of float32, and there are a few of them.
_MOST_ENTRIES = 1 << 29


def _segment(o: SegmentCodesOptions, problem: Problem) -> int:
    """Tokens of a segment; raises `UserError` where they are not whole."""
    if problem.length % o.slots:
        divisors = [s for s in range(1, problem.length + 1) if problem.length % s == 0]
        near = min(divisors, key=lambda s: abs(s - o.slots))
        raise UserError(f"slots={o.slots} does not divide sequences of {problem.length} tokens; choose {near}")
    return problem.length // o.slots


def _mixture(o: SEQDiscreteOptions, problem: Problem, segment: int) -> ProductMixture:
    """The mixture before its fit; raises `UserError` where its tables are too large."""
    entries = o.codes * segment * problem.vocab_size
    if entries > _MOST_ENTRIES:
        raise UserError(
            f"codes={o.codes} of {segment} x {problem.vocab_size} symbols make tables of {entries} entries; "
            f"choose {max(2, _MOST_ENTRIES // (segment * problem.vocab_size))} or fewer, or more slots"
        )
    return ProductMixture(o.codes, segment, problem.vocab_size)


class SEQDiscrete(LatentModel):
    """p(c) by masked diffusion over S codes, p(x | c) by masked diffusion over L tokens beside them."""

    Options: type = SEQDiscreteOptions
    title = "SEQ, EM codes"
    encoder_title = "SEQ, encoder codes"
    mixture: Any  # a `Codebook`, here a `ProductMixture`

    def __init__(self, problem: Problem, options: Any) -> None:
        super().__init__(problem, options)
        o, segment = options, _segment(options, problem)
        self.mixture = self.make_codebook(segment)
        features = self.mixture.feature_MK.shape[1]
        self.decoder = CodeDecoder(problem.shape, problem.vocab_size, features, segment)
        self.prior = CodeNetwork(problem.shape, features, problem.length)
        self.bank = CodeBank(o.bank, o.slots)
        self._stage = "tokens"

    def make_codebook(self, segment: int) -> Codebook:
        """The codes of segments of so many tokens, before they are fitted."""
        return _mixture(self.options, self.problem, segment)

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        if self.options.slots == 1:
            # The only code has no context to learn from, and EM has left its weights at their best: steps could only harm.
            return (Stage("tokens"),)
        return Stage("tokens", 1.0 - self.options.prior_share), Stage("prior", self.options.prior_share)

    def set_stage(self, name: str) -> None:
        self._stage = name
        self.decoder.requires_grad_(name == "tokens")
        self.prior.requires_grad_(name == "prior")

    def fit(self, train_NL: np.ndarray) -> None:
        """The mixture, by EM over the segments of `train_NL`."""
        o = self.options
        self.mixture.fit_sequences(train_NL, o.em_segments, o.em_steps, o.smoothing)

    def fitted_numbers(self) -> int:
        return self.mixture.fitted_numbers()

    def _posterior(self, x_BL: Tensor) -> Tensor:
        """log q(c | x), (B, S, M) float32."""
        score_NM = self.mixture.scores(x_BL.reshape(-1, self.mixture.segment))
        return score_NM.log_softmax(-1).view(len(x_BL), self.options.slots, -1)

    @torch.no_grad()
    def encode(self, x_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """c ~ q(c | x), (B, S), and its log q, (B,) float64 nats."""

        def draw(x_BL: Tensor, u_BS1: Tensor) -> tuple[Tensor, Tensor]:
            log_q_BSM = self._posterior(x_BL)
            c_BS = masked.by_rows(masked.invert, log_q_BSM.flatten(0, 1), u_BS1.flatten(0, 1)).view(u_BS1.shape[:2])
            return c_BS, log_q_BSM.gather(2, c_BS[..., None])[..., 0].double().sum(1)

        u_BS1 = torch.rand(
            (len(x_BL), self.options.slots, 1), generator=generator, dtype=masked.DRAW_DTYPE, device=x_BL.device
        )
        return by_sequences(draw, x_BL, u_BS1)

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """Fills a bank that no training step has filled; the codes of a sequence do not change with the weights."""
        if self.bank.filled == 0:
            generator = torch.Generator(device=x_NL.device).manual_seed(0)
            for x_BL in x_NL.split(256):
                self.bank.put(self.encode(x_BL, generator)[0])

    def _token_terms(self, x_BL: Tensor, code: Tensor, t_B: Tensor, generator: torch.Generator) -> masked.MaskedTerms:
        """Cross-entropies of masked tokens at times t, given codes (see `CodeDecoder`)."""
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        nll_B = masked.masked_nll(self.decoder(xt_BL, code, self.mixture, masked_BL), x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_B))

    def _code_terms(self, c_BS: Tensor, t_B: Tensor, generator: torch.Generator) -> masked.MaskedTerms:
        """Cross-entropies of masked codes at times t."""
        ct_BS, masked_BS = masked.mask_tokens(c_BS, self.schedule.alpha(t_B), self.options.codes, generator)
        nll_B = masked.masked_nll(self.prior(ct_BS, self.mixture, masked_BS), c_BS, masked_BS)
        return masked.MaskedTerms(nll_B, masked_BS.sum(1), self.schedule.weight(t_B))

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """By stage: tokens given codes, nats per token; codes, nats per code."""
        o = self.options
        c_BS, _ = self.encode(x_BL, generator)
        self.bank.put(c_BS)
        if self._stage == "tokens":
            return self._token_loss(x_BL, c_BS, generator)
        c_BS = self.bank.draw(o.latent_batch, generator)
        t_B = token_times(len(c_BS), o.full_mask, generator, self.largest_time)
        return _weighted(self._code_terms(c_BS, t_B, generator), o.loss, o.slots, "code_nats_per_code")

    def _token_loss(self, x_BL: Tensor, code: Tensor, generator: torch.Generator) -> Loss:
        """Tokens given codes, nats per token."""
        t_B = token_times(len(x_BL), self.options.full_mask, generator, self.largest_time)
        terms = self._token_terms(x_BL, code, t_B, generator)
        return _weighted(terms, self.options.loss, x_BL.shape[1], "token_nats_per_token")

    # ---- tokens given codes ---------------------------------------------------------------------------------------
    def token_network(self) -> nn.Module:
        return self.decoder

    def denoiser(self, latent: Tensor) -> Denoiser:
        return lambda x_NL, select_NL, t_N: self.decoder(x_NL, latent, self.mixture, select_NL)

    def encoded(self, n: int, generator: torch.Generator) -> Tensor:
        return self.bank.draw(n, generator)

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """E_q[log q(c | x) - log p(c) - log p(x | c)], both logarithms by their masked NELBO."""
        c_BS, log_q_B = self.encode(x_BL, generator)
        codes = self._code_terms(c_BS, stratified_times(len(c_BS), generator), generator)
        tokens = self._token_terms(x_BL, c_BS, token_times(len(x_BL), 0.0, generator), generator)
        parts = {"encoder": log_q_B, "latent": codes.nelbo_B.double(), "tokens": tokens.nelbo_B.double()}
        return Bound.of_parts(parts, "NELBO with the codes' terms, one code and one time per channel")

    def _information(self, x_BL: Tensor) -> Tensor:
        """KL(q(c | x) || prod pi), nats (B,)."""
        log_q_BSM = self._posterior(x_BL)
        return (log_q_BSM.exp() * (log_q_BSM - self.mixture.log_weight_M)).double().sum((1, 2))

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        """Nats in the codes, what they are worth to the tokens, and what they cost; see `lddm.instruments`.

        `latent_information_nats` is E KL(q(c | x) || prod pi), exact for given shares pi of the codes: an upper bound on
        I(X; c), and the price of the codes where they are drawn in one call. `latent_perplexity_of_codes` is the exponential
        of the entropy of their shares among `x_BL`.
        """
        c_BS, log_q_B = self.encode(x_BL, generator)
        few, share_M = slice(0, instruments.FEW), c_BS.flatten().bincount().double() / c_BS.numel()

        def nats(c_BS1: Tensor, t: float = 1.0) -> float:
            t_B = torch.full((len(c_BS1),), t, dtype=torch.float64, device=c_BS1.device)
            return float(self._token_terms(x_BL[: len(c_BS1)], c_BS1[..., 0], t_B, generator).nll_B.mean())

        def code_nats(t: float) -> float:
            t_B = torch.full((len(c_BS),), t, dtype=torch.float64, device=c_BS.device)
            terms = self._code_terms(c_BS, t_B, generator)
            return float(terms.nll_B.sum() / terms.count_B.sum().clamp(min=1))

        times, codes_BS1 = (0.25, 0.5, 0.75, 1.0), c_BS[..., None]
        return {
            "latent_information_nats": float(by_sequences(self._information, x_BL).mean()),
            "latent_entropy_of_encoder_nats": -float(log_q_B.mean()),
            "latent_codes_in_use": float((share_M > 0).sum()),
            "latent_perplexity_of_codes": float(torch.special.entr(share_M).sum().exp()),
            "latent_nats_saved": self._blind(x_BL) - nats(codes_BS1),
            **instruments.usage(codes_BS1[few], nats, generator),
            **instruments.by_time(lambda t: nats(codes_BS1[few], t), "token_loss", times),
            **instruments.by_time(code_nats, "latent_loss", times),
        }

    def _blind(self, x_BL: Tensor) -> float:
        """Nats per sequence of one token step that knows no code: under the marginal law at each place."""
        entry_NC = self.mixture.entries(x_BL.reshape(-1, self.mixture.segment))
        return -float(self.mixture.marginal_F()[entry_NC].sum()) / len(x_BL)


def _weighted(terms: masked.MaskedTerms, kind: str, length: int, name: str) -> Loss:
    """What is trained (`MaskedTerms.loss`), and its mean over what was masked under a name."""
    mean = terms.nll_B.sum() / terms.count_B.sum().clamp(min=1)
    return Loss(terms.loss(kind, length), {name: mean.detach()})
