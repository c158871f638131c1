"""Noisy embeddings of tokens: a continuous latent whose encoder is in closed form and cannot collapse.

`z_t = (e_x + rho n) / sqrt(1 + rho^2)` with fixed embeddings e, normal noise n and a noise rho(t) that is defined by what it
hides: at time t a share t of the tokens' unigram entropy is unknown to a reader of z_t who sees each token by itself. So t
means the same as in masked diffusion, where a share t of the tokens is hidden, and no schedule has to be searched for each
number of dims (compare the entropy-based time of Dieleman et al. 2022, section 3.2).

Shapes: B sequences, L tokens, V symbols, D dims of an embedding, N tokens, G points of the grid of noises.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

#: log rho, from where every token is read without error to where nothing is left of it.
_GRID_G = torch.linspace(math.log(0.03), math.log(60.0), 81, dtype=torch.float64)
#: Neighbours, on each side, whose symbols tell what a symbol is like.
_WINDOW = 2
#: ... and how many of the most frequent ones are told apart.
_CONTEXTS = 1024
#: Tokens drawn to measure what a noise hides, and the seed of that.
_DRAWS, _SEED = 2048, 71
#: Directions beside the wanted ones and rounds of the decomposition, whose products are counted as training.
_SPARE, _ROUNDS = 8, 4


class TokenEmbedding(nn.Module):
    """e (V, D) with |e_v|^2 = D, and the noise of each time; buffers, because they are fitted in closed form."""

    embedding_VD: Tensor
    log_prior_V: Tensor
    hidden_G: Tensor

    def __init__(self, vocab_size: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("embedding_VD", torch.zeros(vocab_size, dims))
        self.register_buffer("log_prior_V", torch.full((vocab_size,), -math.log(vocab_size)))
        self.register_buffer("hidden_G", torch.linspace(0.0, 1.0, len(_GRID_G), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, x_NL: np.ndarray) -> None:
        """Principal directions of the square roots of each symbol's neighbours' frequencies, all of one length.

        Symbols that stand in like places are near to each other, so that much noise still tells a vowel from a space.
        """
        V, D = self.embedding_VD.shape
        x_NL = np.asarray(x_NL)
        count_V = np.bincount(x_NL.reshape(-1), minlength=V) + 1.0
        rank_V = np.argsort(np.argsort(-count_V, kind="stable"))
        gaps = range(1, min(_WINDOW, x_NL.shape[1] - 1) + 1)
        feature_VF = torch.from_numpy(np.concatenate([_neighbours(x_NL, gap, rank_V) for gap in gaps], axis=1))
        share_V = torch.from_numpy(count_V / count_V.sum())
        feature_VF -= share_V @ feature_VF
        with torch.random.fork_rng(devices=[]):  # the sketch of `svd_lowrank` is drawn from torch's own generator
            torch.manual_seed(_SEED)
            rank = min(D, *feature_VF.shape)
            u_VR, s_R, _ = torch.svd_lowrank(feature_VF, q=min(rank + _SPARE, *feature_VF.shape), niter=_ROUNDS)
        e_VD = torch.zeros((V, D), dtype=torch.float64)
        e_VD[:, :rank] = u_VR[:, :rank] * s_R[:rank].sqrt()
        e_VD *= math.sqrt(D) / e_VD.norm(dim=1, keepdim=True).clamp(min=1e-9)
        self.embedding_VD.copy_(e_VD)
        self.log_prior_V.copy_(share_V.log())
        self._measure(share_V)

    def _measure(self, share_V: Tensor) -> None:
        """Share of the unigram entropy that each noise of the grid hides, by drawing tokens and noise."""
        generator = torch.Generator().manual_seed(_SEED)
        e_VD = self.embedding_VD.double().cpu()
        half_V = 0.5 * e_VD.square().sum(1)
        x_N = torch.multinomial(share_V, _DRAWS, replacement=True, generator=generator)
        noise_ND = torch.randn((_DRAWS, e_VD.shape[1]), generator=generator, dtype=torch.float64)
        whole = -float((share_V * share_V.log()).sum())
        hidden = []
        for rho in _GRID_G.exp().tolist():
            evidence_NV = ((e_VD[x_N] + rho * noise_ND) @ e_VD.T - half_V) / rho**2
            log_p_NV = (share_V.log() + evidence_NV).log_softmax(1)
            hidden.append(-float((log_p_NV.exp() * log_p_NV).sum(1).mean()) / whole)
        rising_G = torch.arange(len(hidden), dtype=torch.float64) * 1e-9  # so that no two noises have one time
        self.hidden_G.copy_(torch.tensor(hidden, dtype=torch.float64).cummax(0).values + rising_G)

    # ---- times ------------------------------------------------------------------------------------------------------
    def log_rho(self, t_B: Tensor) -> Tensor:
        """log rho at times t in [0, 1], float64."""
        return _interpolate(t_B.double(), self.hidden_G, _GRID_G.to(t_B.device))

    def time_of(self, log_rho_B: Tensor) -> Tensor:
        """Inverse of `log_rho`, float64."""
        return _interpolate(log_rho_B.double(), _GRID_G.to(log_rho_B.device), self.hidden_G)

    # ---- the process ------------------------------------------------------------------------------------------------
    def diffuse(self, x_BL: Tensor, t_B: Tensor, generator: torch.Generator) -> Tensor:
        """z_t (B, L, D) float32 of tokens at times (B,)."""
        e_BLD = self.embedding_VD[x_BL]
        rho_B11 = self.log_rho(t_B).exp().float()[:, None, None]
        noise_BLD = torch.randn(e_BLD.shape, generator=generator, device=e_BLD.device)
        return (e_BLD + rho_B11 * noise_BLD) / (1.0 + rho_B11**2).sqrt()

    def evidence(self, z_BLD: Tensor, t_B: Tensor) -> Tensor:
        """log N(z_t | e_v) for each symbol, but for a term that all symbols share: (B, L, V) float32."""
        with torch.autocast(z_BLD.device.type, enabled=False):
            rho2_B11 = (2.0 * self.log_rho(t_B)).exp().float()[:, None, None]
            y_BLD = z_BLD.float() * (1.0 + rho2_B11).sqrt()
            return (y_BLD @ self.embedding_VD.T - 0.5 * self.embedding_VD.square().sum(1)) / rho2_B11

    def mean(self, log_p_BLV: Tensor) -> Tensor:
        """E[e_x] under log-probabilities of the symbols, (B, L, D) float32."""
        with torch.autocast(log_p_BLV.device.type, enabled=False):
            return log_p_BLV.float().exp() @ self.embedding_VD

    def step(
        self, z_BLD: Tensor, mean_BLD: Tensor, t: float, s: float, eta: float, generator: torch.Generator
    ) -> Tensor:
        """One reverse step t -> s given E[e_x | z_t]; eta = 0 is DDIM, eta = 1 the ancestral step (DDIM, eq. 12, 16).

        In y = z sqrt(1 + rho^2) = e + rho n, which has no drift.
        """
        rho_t, rho_s = self.log_rho(torch.tensor([t, s], device=z_BLD.device)).exp().tolist()
        y_BLD = z_BLD * math.sqrt(1.0 + rho_t**2)
        fresh = eta * rho_s * math.sqrt(max(1.0 - (rho_s / rho_t) ** 2, 0.0))
        kept = math.sqrt(max(rho_s**2 - fresh**2, 0.0)) / rho_t
        y_BLD = mean_BLD + kept * (y_BLD - mean_BLD)
        if fresh > 0.0:
            y_BLD = y_BLD + fresh * torch.randn(y_BLD.shape, generator=generator, device=y_BLD.device)
        return y_BLD / math.sqrt(1.0 + rho_s**2)


def _neighbours(x_NL: np.ndarray, gap: int, rank_V: np.ndarray) -> np.ndarray:
    """Square roots of the frequencies of the symbols `gap` places after and before each symbol, (V, 2 K).

    `rank_V` numbers the symbols by frequency; the K most frequent are columns.
    """
    V, K = len(rank_V), min(len(rank_V), _CONTEXTS)
    found = []
    for own, other in ((x_NL[:, :-gap], x_NL[:, gap:]), (x_NL[:, gap:], x_NL[:, :-gap])):
        column = rank_V[other.reshape(-1)]
        frequent = column < K
        pair = own.reshape(-1)[frequent].astype(np.int64) * K + column[frequent]
        count_VK = np.bincount(pair, minlength=V * K).reshape(V, K) + 0.5
        found.append(np.sqrt(count_VK / count_VK.sum(1, keepdims=True)))
    return np.concatenate(found, axis=1)


def _interpolate(at_B: Tensor, from_G: Tensor, to_G: Tensor) -> Tensor:
    """Piecewise linear: `to` where `from`, which does not fall, is `at`; constant outside of it."""
    right_B = torch.searchsorted(from_G, at_B.contiguous()).clamp(1, len(from_G) - 1)
    low_B, high_B = from_G[right_B - 1], from_G[right_B]
    share_B = ((at_B - low_B) / (high_B - low_B).clamp(min=1e-12)).clamp(0.0, 1.0)
    return to_G[right_B - 1] + share_B * (to_G[right_B] - to_G[right_B - 1])
