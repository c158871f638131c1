"""Codes that are learnt by gradients, through what a decoder makes of them: by vector quantisation, or by Gumbel-softmax.

An encoder reads the whole sequence into a vector for each segment. VQ takes the nearest of M vectors as the code, passes the
decoder's gradient on as if nothing had been rounded, and moves the M vectors to the means of what they stand for (van den Oord
et al. 2017, arXiv 1711.00937, appendix A.1). They start at k-means, and those that stand for nothing start again at a vector of
the batch (Zeghidour et al. 2021, arXiv 2107.03312, section III-C). Gumbel-softmax draws the code from M logits; its gradient is
that of a softmax over the same noise, whose temperature falls (Jang et al. 2017, arXiv 1611.01144).

Clusters of an encoder that has learnt nothing are about nothing, and few gradients through them lead on. So VQ first trains on
the vectors with noise, and k-means follows (`warmup`); the price of Gumbel's codes grows over the same share of the steps.

Shapes: B batch, L tokens in S segments of C, V symbols, M codes, K numbers of a vector, N = B S segments.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.fields import ranged
from harness.diffusion import masked
from harness.interface import Problem
from harness.nn.slices import by_sequences
from lddm.bank import LatentBank
from lddm.codebook import Codebook
from lddm.latent import LatentEncoder, LatentOptions, gaussian_noise
from lddm.seq_discrete import SegmentCodesOptions

#: Sequences whose segments k-means reads, its passes, and its seed.
_START, _PASSES, _SEED = 2048, 10, 79
#: Weight of the old share in the running share of each code.
_DECAY = 0.95
#: What is added to a share, so that no code is impossible.
_LEAST = 1e-5


@dataclass
class LearnedCodesOptions(SegmentCodesOptions):
    codes: int = ranged(512, 2, 1 << 20)
    dims: int = ranged(32, 1, 4096)  # numbers of a code's vector
    encoder_depth: int = ranged(1, 1, 96)
    latent_dropout: float = ranged(0.15, 0, 1)  # share of a batch whose decoder sees no code while it trains
    warmup: float = ranged(0.3, 0, 1)  # of the steps of the tokens: see lddm.learned_codes


class LearnedCodes(Codebook):
    """The encoder, and the shares of the codes; the decoder starts from the law of all tokens at each place."""

    usage_M: Tensor
    log_law_CV: Tensor

    def __init__(self, problem: Problem, options: LearnedCodesOptions, segment: int) -> None:
        super().__init__(segment, problem.vocab_size)
        o = options
        self.encoder = LatentEncoder(problem, LatentOptions(slots=o.slots, dims=o.dims, encoder_depth=o.encoder_depth))
        self.register_buffer("usage_M", torch.full((o.codes,), 1.0 / o.codes))
        self.register_buffer("log_law_CV", torch.full((segment, problem.vocab_size), 1.0 / problem.vocab_size).log())

    @property
    def log_weight_M(self) -> Tensor:  # type: ignore[override]
        weight_M = self.usage_M + _LEAST / len(self.usage_M)
        return (weight_M / weight_M.sum()).log()

    def laws(self, code: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_law_CV, self.places(*code.shape[:2])

    def marginal_F(self) -> Tensor:
        return self.log_law_CV.flatten()

    def fitted_numbers(self) -> int:
        return self.usage_M.numel() + self.log_law_CV.numel()

    def freeze(self, frozen: bool) -> None:
        """Frozen codes are those of the weights and shares that are there."""
        self.requires_grad_(not frozen)
        self.encoder.freeze(frozen)

    @torch.no_grad()
    def start(self, x_NL: np.ndarray) -> Tensor:
        """Count tokens by their place; returns vectors of the fresh encoder, standardised, of some sequences (N, S, K)."""
        x_nC = torch.from_numpy(x_NL.astype(np.int64)).reshape(-1, self.segment)
        count_CV = torch.stack([x_n.bincount(minlength=self.vocab_size) for x_n in x_nC.T]) + 0.5
        self.log_law_CV.copy_((count_CV / count_CV.sum(1, keepdim=True)).log())
        rows = np.random.default_rng(_SEED).permutation(len(x_NL))[:_START]
        x_BL = torch.from_numpy(x_NL[rows].astype(np.int64)).to(self.usage_M.device)
        self.encoder.calibrate(x_BL)
        training = self.training
        z_BSK = torch.cat([self.eval().encoder.mean(x) for x in x_BL.split(256)])
        self.train(training)
        return z_BSK

    def _count(self, share_M: Tensor) -> None:
        """Move the running shares towards those of a batch."""
        if self.training:
            self.usage_M.lerp_(share_M.detach(), 1.0 - _DECAY)

    @abstractmethod
    def shares(self, x_BL: Tensor) -> Tensor:
        """Mean share of each code in the segments of sequences, (M,)."""

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """Standardisation and shares under the current weights."""
        self.encoder.calibrate(x_NL)
        self.usage_M.copy_(self.shares(x_NL))

    @abstractmethod
    def learn(
        self, x_BL: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors of codes (B, S, K) through which gradients pass; what is added to the loss, a scalar; its named parts."""


@dataclass
class VQOptions(LearnedCodesOptions):
    commitment: float = ranged(0.25, 0, 1e6)  # weight of the squared distance of an encoder's vector to its code's
    restart: float = ranged(0.1, 0, 1, below=True)  # of an even share: codes below it start again


class VQCodes(LearnedCodes):
    """The nearest of M vectors; a function of the sequence, so that q(c | x) has no entropy."""

    feature_MK: Tensor
    sum_MK: Tensor

    def __init__(self, problem: Problem, options: VQOptions, segment: int) -> None:
        super().__init__(problem, options, segment)
        self.warmup, self.commitment, self.restart = options.warmup, options.commitment, options.restart
        self.recent = LatentBank(max(1, _START // options.slots), options.slots, options.dims)
        self.register_buffer("feature_MK", torch.randn(options.codes, options.dims))
        self.register_buffer("sum_MK", self.feature_MK / options.codes)  # usage times vector

    def fitted_numbers(self) -> int:
        return super().fitted_numbers() + self.feature_MK.numel()

    def nearest(self, z_BSK: Tensor) -> Tensor:
        """Numbers of the nearest vectors, (B, S)."""
        with torch.autocast(z_BSK.device.type, enabled=False):
            half_M = 0.5 * self.feature_MK.square().sum(1)
            return (z_BSK.detach().float() @ self.feature_MK.T - half_M).argmax(-1)

    @torch.no_grad()
    def codes(self, x_BL: Tensor) -> Tensor:
        """The code of each segment, (B, S)."""
        return by_sequences(lambda x_BL: self.nearest(self.encoder.mean(x_BL)), x_BL)

    def shares(self, x_BL: Tensor) -> Tensor:
        return self._shares(self.codes(x_BL))

    def _shares(self, c_BS: Tensor) -> Tensor:
        return c_BS.flatten().bincount(minlength=len(self.usage_M)).float() / c_BS.numel()

    @torch.no_grad()
    def start(self, x_NL: np.ndarray) -> Tensor:
        z_NSK = super().start(x_NL)
        self._cluster(z_NSK.flatten(0, 1))
        return z_NSK

    @torch.no_grad()
    def _cluster(self, z_NK: Tensor) -> None:
        """k-means (Lloyd 1982) of vectors, from some of them."""
        M = len(self.usage_M)
        first = np.random.default_rng(_SEED).choice(len(z_NK), M, replace=len(z_NK) < M)
        self.feature_MK.copy_(z_NK[torch.from_numpy(first).to(z_NK.device)])
        for _ in range(_PASSES):
            share_M, sum_MK = self._sums(z_NK, self.nearest(z_NK))
            seen_M1 = (share_M > 0)[:, None]
            self.feature_MK.copy_(torch.where(seen_M1, sum_MK / share_M.clamp(min=1e-12)[:, None], self.feature_MK))
        self.usage_M.copy_(share_M)
        self.sum_MK.copy_(self.feature_MK * share_M[:, None])

    def _sums(self, z_NK: Tensor, c_N: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the codes (M,), and the sums of the vectors that they stand for over the number of all (M, K)."""
        return self._shares(c_N), torch.zeros_like(self.sum_MK).index_add_(0, c_N, z_NK.float()) / len(z_NK)

    def learn(
        self, x_BL: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        z_BSK = self.encoder.mean(x_BL, generator)
        if progress < self.warmup:
            self.recent.put(z_BSK.detach())
            noisy_BSK = z_BSK + self.encoder.noise * gaussian_noise(z_BSK.shape, generator)
            return noisy_BSK, z_BSK.new_zeros(()), {"quantisation_mse": z_BSK.new_zeros(())}
        if self.recent.filled and self.training:
            self._cluster(self.recent.rows.flatten(0, 1))
            self.recent.clear()
        c_BS = self.nearest(z_BSK)
        vector_BSK = self.feature_MK[c_BS]
        apart = F.mse_loss(z_BSK, vector_BSK)
        self._follow(z_BSK.detach().flatten(0, 1), c_BS.flatten(), generator)
        passed_BSK = z_BSK + (vector_BSK - z_BSK).detach()
        return passed_BSK, self.commitment * apart, {"quantisation_mse": apart.detach()}

    @torch.no_grad()
    def _follow(self, z_NK: Tensor, c_N: Tensor, generator: torch.Generator) -> None:
        """Vectors move to the running means of what they stand for; unused ones start again."""
        if not self.training:
            return
        share_M, sum_MK = self._sums(z_NK, c_N)
        self._count(share_M)
        self.sum_MK.lerp_(sum_MK, 1.0 - _DECAY)
        even = 1.0 / len(share_M)
        dead_M = self.usage_M < self.restart * even
        at_M = torch.randint(len(z_NK), dead_M.shape, generator=generator, device=z_NK.device)
        self.sum_MK.copy_(torch.where(dead_M[:, None], z_NK[at_M].float() * even, self.sum_MK))
        self.usage_M.masked_fill_(dead_M, even)
        self.feature_MK.copy_(self.sum_MK / self.usage_M.clamp(min=1e-12)[:, None])


@dataclass
class GumbelOptions(LearnedCodesOptions):
    temperature: float = ranged(1.0, 0, above=True)  # of the softmax at the start
    last_temperature: float = ranged(0.3, 0, above=True)  # and at its end
    # Weight of KL(q(c | x) || shares of the codes), in nats per token. With 1, as in the bound, codes die: what a code tells of
    # the tokens other tokens tell too, in many steps, so that the bound gains nothing from it, and only few steps do.
    rate: float = ranged(0.1, 0, 1e6)  # weight of the codes' price beside the tokens


class GumbelCodes(LearnedCodes):
    """q(c | x) is a softmax of M logits of the encoder's vector."""

    def __init__(self, problem: Problem, options: GumbelOptions, segment: int) -> None:
        super().__init__(problem, options, segment)
        self.options = options
        self.logit = nn.Linear(options.dims, options.codes)
        self.feature_MK = nn.Parameter(torch.randn(options.codes, options.dims))

    def log_q(self, x_BL: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log q(c | x), (B, S, M) float32."""
        return self.logit(self.encoder.mean(x_BL, generator)).float().log_softmax(-1)

    def shares(self, x_BL: Tensor) -> Tensor:
        total_M = torch.stack([self.log_q(x_bL).exp().sum((0, 1)) for x_bL in x_BL.split(256)]).sum(0)
        return total_M / total_M.sum()

    def learn(
        self, x_BL: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        o, log_q_BSM = self.options, self.log_q(x_BL, generator)
        u_BSM = torch.rand(log_q_BSM.shape, generator=generator, dtype=masked.DRAW_DTYPE, device=x_BL.device)
        noise_BSM = -torch.log(-torch.log(u_BSM.clamp(min=1e-300)))
        temperature = o.temperature * (o.last_temperature / o.temperature) ** progress
        soft_BSM = ((log_q_BSM + noise_BSM.float()) / temperature).softmax(-1)
        hard_BSM = F.one_hot(soft_BSM.argmax(-1), soft_BSM.shape[-1]).to(soft_BSM)
        q_BSM = log_q_BSM.exp()
        rate = (q_BSM * (log_q_BSM - self.log_weight_M)).sum((1, 2)).mean() / x_BL.shape[1]
        self._count(q_BSM.mean((0, 1)))
        weight = o.rate * min(1.0, progress / o.warmup) if o.warmup else o.rate
        passed_BSM = hard_BSM + soft_BSM - soft_BSM.detach()
        return passed_BSM @ self.feature_MK, weight * rate, {"code_rate_nats_per_token": rate.detach()}
