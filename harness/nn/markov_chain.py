"""A Markov chain over the tokens of a sequence, n-grams counted in the data: a law whose posterior is exact too.

A chain of order n knows each token by the n - 1 before it. Given evidence of every token by itself (a noisy embedding, a
known token), the forward-backward algorithm (Baum et al. 1970) sums over all sequences, so that what is known of each token
given all evidence is no approximation, and sequences can be drawn given it, their tokens together.

Shapes: N sequences of L tokens, V symbols; a state is the last n - 1 tokens: A the oldest, R the n - 2 others, D the next.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.diffusion.masked import draw_tokens
from harness.errors import UserError

#: Numbers of the table at most.
_MOST = 1 << 24
#: Numbers that a block of sequences keeps in the forward pass.
_KEPT_NUMBERS = 1 << 24
#: Least evidence for a symbol beside the best one, and the least probability that is told.
_LEAST = 1e-20
#: Of a table with a temperature: times the least evidence it is a number of float32.
_LEAST_WEIGHT = 1e-15


class MarkovChain(nn.Module):
    """`table_RAD` is p(d | a, r), `start_AR` the law of the first n - 1 tokens. Before `fit` all is uniform."""

    table_RAD: Tensor
    start_AR: Tensor

    def __init__(self, order: int, length: int, vocab_size: int) -> None:
        super().__init__()
        most = int(np.log(_MOST) // np.log(max(vocab_size, 2)))
        if order > min(most, length):
            raise UserError(
                f"order={order}: a chain over {vocab_size} symbols and {length} tokens has tables of {vocab_size}^order "
                f"numbers, at most {_MOST}; use order={min(most, length)} or law=mixture"
            )
        V, rest = vocab_size, vocab_size ** (order - 2)
        self.order, self.segment, self.vocab_size = order, length, vocab_size
        self.register_buffer("table_RAD", torch.full((rest, V, V), 1.0 / V))
        self.register_buffer("start_AR", torch.full((V, rest), 1.0 / (V * rest)))

    # ---- what is known of each token by itself ----------------------------------------------------------------------
    @torch.no_grad()
    def posterior(self, evidence_NLV: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_i | all evidence), (N, L, V), and the evidence's log probability, (N,), both float32.

        `evidence_NLV`: log p(what is seen of a token | the token), up to a factor for each token.
        """
        log_p_NLV, log_N = self._in_blocks(self._posterior, evidence_NLV)
        return log_p_NLV, log_N

    @torch.no_grad()
    def evidence_log_p(self, evidence_NLV: Tensor) -> Tensor:
        """The evidence's log probability alone, (N,) float32, in half of the work."""
        return self._in_blocks(lambda seen_LNV, top_N: (self._forward(seen_LNV)[1] + top_N,), evidence_NLV)[0]

    def joint_nll(self, potentials_NLV: Tensor, x_NL: Tensor, open_NL: Tensor) -> Tensor:
        """`-log p(x | potentials)` of whole sequences, summed; potentials are `evidence` of any kind. A scalar, float32.

        The gradient by the potentials of an open token is its law under all of them less the token that is there; where
        a token is not open (it is certain: minus infinity for all others) there is none.
        """
        with torch.no_grad():
            log_p_NLV, log_N = self.posterior(potentials_NLV)
            own_N = at(potentials_NLV, x_NL).sum(1)
            nll = (log_N - own_N - self.log_p(x_NL)).sum()
            error_MV = log_p_NLV[open_NL].exp() - F.one_hot(x_NL[open_NL], self.vocab_size)
        slope = (error_MV * potentials_NLV[open_NL]).sum()
        return (slope - slope.detach() + nll).float()

    @torch.no_grad()
    def draw_given(self, evidence_NLV: Tensor, generator: torch.Generator) -> Tensor:
        """One sequence for each row of evidence from p(x | all evidence), (N, L) int64, in float64: forward, then drawn
        backward, each token given those after it.
        """

        def drawn(seen_LNV: Tensor, top_N: Tensor) -> tuple[Tensor]:
            return (self._draw_back(self._forward(seen_LNV)[0], generator),)

        return self._in_blocks(drawn, evidence_NLV)[0]

    @torch.no_grad()
    def tempered(self, temperature: float) -> MarkovChain:
        """A chain whose sequences have weights `p(x)^(1 / temperature)`: for `draw_given`, as its tables sum to no law."""
        if temperature == 1.0:
            return self
        chain = copy.copy(self)
        chain._buffers = {
            name: table.pow(1.0 / temperature).clamp(min=_LEAST_WEIGHT) for name, table in self.named_buffers()
        }
        return chain

    @torch.no_grad()
    def log_p(self, x_NL: Tensor) -> Tensor:
        """log p(x) of the chain itself, (N,) float64."""
        n, log_table_RAD = self.order, self.table_RAD.double().log()
        log_p_N = self.start_AR.double().log().flatten()[self._key(x_NL[:, : n - 1])]
        for i in range(n - 1, self.segment):
            log_p_N = log_p_N + log_table_RAD[self._key(x_NL[:, i - n + 2 : i]), x_NL[:, i - n + 1], x_NL[:, i]]
        return log_p_N

    def _in_blocks(
        self, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], evidence_NLV: Tensor
    ) -> tuple[Tensor, ...]:
        """What `function` makes of `_scaled` evidence, put together: as many sequences at a time as there is room for."""
        rows = max(1, _KEPT_NUMBERS // (self.segment * self.start_AR.numel()))
        with torch.autocast(evidence_NLV.device.type, enabled=False):
            blocks = [function(*_scaled(e_NLV.float())) for e_NLV in evidence_NLV.split(rows)]
        return tuple(map(torch.cat, zip(*blocks, strict=True)))

    def _draw_back(self, forward: list[Tensor], generator: torch.Generator) -> Tensor:
        """Tokens (N, L) given the forward messages."""
        n, N = self.order, len(forward[0])
        row_N = torch.arange(N, device=forward[0].device)
        x_NL = torch.empty((N, self.segment), dtype=torch.int64, device=forward[0].device)
        state_N, _ = draw_tokens(forward[-1].flatten(1).log(), generator)
        x_NL[:, self.segment - n + 1 :] = self._spelled(state_N)
        for i in range(self.segment - 1, n - 2, -1):
            rest_N = self._key(x_NL[:, i - n + 2 : i])
            weight_NA = forward[i - n + 1][row_N, :, rest_N] * self.table_RAD[rest_N, :, x_NL[:, i]]
            x_NL[:, i - n + 1], _ = draw_tokens(weight_NA.log(), generator)
        return x_NL

    def _posterior(self, seen_LNV: Tensor, top_N: Tensor) -> tuple[Tensor, Tensor]:
        forward, log_N = self._forward(seen_LNV)
        p_NLV = seen_LNV.new_empty(seen_LNV.shape[1], self.segment, self.vocab_size)
        first, V = self.order - 2, self.vocab_size  # of the tokens that have a forward message: the last of the start
        back_NAR = torch.ones_like(forward[0])
        for i in range(self.segment - 1, first, -1):
            both_NSD = (forward[i - first] * back_NAR).view(len(back_NAR), -1, V)  # the last token is the fastest index
            p_NLV[:, i] = both_NSD.sum(1)
            back_NAR = self._backward(back_NAR, seen_LNV[i])
        start = (forward[0] * back_NAR).view(-1, *[V] * (self.order - 1))
        for i in range(self.order - 1):
            others = [j + 1 for j in range(self.order - 1) if j != i]
            p_NLV[:, i] = start.sum(others) if others else start
        p_NLV /= p_NLV.sum(-1, keepdim=True)
        return p_NLV.clamp_(min=_LEAST).log_().log_softmax(-1), log_N + top_N

    def _forward(self, seen_LNV: Tensor) -> tuple[list[Tensor], Tensor]:
        """p(state | evidence up to its last token), (N, A, R) each, and the log probability of all evidence, (N,)."""
        joint_NS = self.start_AR.reshape(1, -1)
        weight_NS = torch.ones_like(seen_LNV[0, :, :1])
        for seen_NV in seen_LNV[: self.order - 1]:
            weight_NS = (weight_NS[:, :, None] * seen_NV[:, None]).flatten(1)
        state_NAR = (joint_NS * weight_NS).view(-1, *self.start_AR.shape)
        kept: list[Tensor] = []
        log_N = torch.zeros_like(seen_LNV[0, :, 0])
        for i in range(self.order - 2, self.segment):
            if i > self.order - 2:
                next_RND = torch.bmm(kept[-1].permute(2, 0, 1), self.table_RAD)
                state_NAR = (next_RND.transpose(0, 1) * seen_LNV[i][:, None]).reshape(kept[-1].shape)
            total_N = state_NAR.sum((1, 2))
            log_N = log_N + total_N.log()
            kept.append(state_NAR / total_N[:, None, None])
        return kept, log_N

    def _backward(self, back_NAR: Tensor, seen_NV: Tensor) -> Tensor:
        """From p(evidence after | state) to that of the state before, up to a factor for each sequence."""
        next_NRD = back_NAR.view(len(back_NAR), -1, self.vocab_size) * seen_NV[:, None]
        before_RNA = torch.bmm(next_NRD.transpose(0, 1), self.table_RAD.transpose(1, 2))
        before_NAR = before_RNA.permute(1, 2, 0)
        return (before_NAR / before_NAR.amax((1, 2), keepdim=True)).contiguous()

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` sequences, (n, L) int64, each token given those before it, all in float64."""
        device = generator.device
        u_n = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        cdf_S = self.start_AR.flatten().double().cumsum(0)
        state_n = torch.searchsorted(cdf_S, u_n * cdf_S[-1], right=True).clamp_(max=len(cdf_S) - 1)
        x_nL = torch.empty((n, self.segment), dtype=torch.int64, device=device)
        x_nL[:, : self.order - 1] = self._spelled(state_n)
        for i in range(self.order - 1, self.segment):
            rest_n = self._key(x_nL[:, i - self.order + 2 : i])
            x_nL[:, i] = draw_tokens(self.table_RAD[rest_n, x_nL[:, i - self.order + 1]].log(), generator)[0]
        return x_nL

    def _key(self, x_NM: Tensor) -> Tensor:
        key_N = torch.zeros(len(x_NM), dtype=torch.int64, device=x_NM.device)
        for x_N in x_NM.T:
            key_N = key_N * self.vocab_size + x_N
        return key_N

    def _spelled(self, state_N: Tensor) -> Tensor:
        """The tokens (N, n - 1) of states, whose number `_key` is."""
        powers = self.vocab_size ** torch.arange(self.order - 2, -1, -1, device=state_N.device)
        return state_N[:, None] // powers % self.vocab_size

    # ---- learning ---------------------------------------------------------------------------------------------------
    def fitted_numbers(self) -> int:
        """How many numbers `fit` learns."""
        return self.table_RAD.numel() + self.start_AR.numel()

    @torch.no_grad()
    def fit(self, x_NL: np.ndarray) -> None:
        """Counts with Witten-Bell back-off, as `baselines.ngram` has them; windows start anywhere, and so do sequences."""
        V, x_NL = self.vocab_size, np.ascontiguousarray(x_NL).astype(np.int64)
        law_HV, start_S = np.full((1, V), 1.0 / V), np.ones(1)
        for length in range(self.order):
            if length:
                start_S = (start_S[:, None] * law_HV).ravel()  # of the first tokens: each given as many as there are
            law_HV = _interpolated(_counts(x_NL, length + 1, V).reshape(-1, V), law_HV)
        as_ARD = torch.from_numpy(law_HV.astype(np.float32)).view(V, -1, V)
        self.table_RAD.copy_(as_ARD.transpose(0, 1))
        self.start_AR.copy_(torch.from_numpy(start_S.astype(np.float32)).view(self.start_AR.shape))


def at(values_BLV: Tensor, x_BL: Tensor) -> Tensor:
    """The values (B, L) of the tokens that are there."""
    return values_BLV.gather(2, x_BL[..., None])[..., 0]


def certain(x_NL: Tensor, vocab_size: int) -> Tensor:
    """Evidence (N, L, V) of tokens that are known: 0, and minus infinity for all others. What is masked may be anything."""
    return F.one_hot(x_NL.clamp(max=vocab_size - 1), vocab_size).float().log()


def _scaled(evidence_NLV: Tensor) -> tuple[Tensor, Tensor]:
    """Evidence as probabilities (L, N, V) of at most 1, and the logarithm of what they were divided by, (N,)."""
    top_NL1 = evidence_NLV.amax(-1, keepdim=True)
    return (evidence_NLV - top_NL1).exp().clamp(min=_LEAST).transpose(0, 1), top_NL1.sum((1, 2))


def _counts(x_NL: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """Occurrences of all sequences of `length` symbols, (V^length,) float64."""
    last = x_NL.shape[1] - length + 1
    key = np.zeros((len(x_NL), last), dtype=np.int64)
    for j in range(length):
        key = key * vocab_size + x_NL[:, j : j + last]
    return np.bincount(key.ravel(), minlength=vocab_size**length).astype(np.float64)


def _interpolated(count_HV: np.ndarray, lower_HV: np.ndarray) -> np.ndarray:
    """`(c + T lower) / (c(h) + T)`, T the number of different symbols seen after a history, whose oldest token is A."""
    lower_HV = np.tile(lower_HV, (len(count_HV) // len(lower_HV), 1))
    seen_H1, distinct_H1 = count_HV.sum(1, keepdims=True), (count_HV > 0).sum(1, keepdims=True)
    return np.where(seen_H1 > 0, (count_HV + distinct_H1 * lower_HV) / np.maximum(seen_H1 + distinct_H1, 1), lower_HV)
