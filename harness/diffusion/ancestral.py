"""The ancestral sampler of a masked denoiser, and how likely a given sequence is under it.

In each of K reverse steps some masked positions are chosen, blind to the tokens, and their tokens are drawn independently
of each other from p(x_i | tokens shown before). Which positions are revealed in which step is a *path*; given the path the
sampler is a product of conditionals, so its law is `q_K(x) = E_path prod_k prod_{i in step k} p(x_i | shown before k)`.

Shapes: N sequences, L tokens, V symbols (id V is the mask), M revealed positions in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from harness.diffusion import masked
from harness.interface import Draw, Sampler
from harness.nn.slices import Logits

#: (tokens (N, L) with masks, positions to reveal (N, L) bool, time (N,)) to logits (M, V): one network call.
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor | Logits]


def blank(n: int, length: int, mask_id: int, device: torch.device) -> Tensor:
    """`n` sequences of masks, where all is to be drawn."""
    return torch.full((n, length), mask_id, dtype=torch.int64, device=device)


class Filler(Sampler):
    """A sampler whose draw is to fill in what is hidden, all of it."""

    fills = True

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        p = self.method.problem
        x_NL = blank(n, p.length, p.vocab_size, generator.device)
        return self.fill(x_NL, x_NL == p.vocab_size, nfe, generator, temperature)


def sample(
    denoiser: Denoiser,
    start_NL: Tensor,
    mask_id: int,
    alphas: list[float],
    generator: torch.Generator,
    temperature: float = 1.0,
) -> tuple[Tensor, str]:
    """K = len(alphas) - 1 two-stage reverse steps from `start_NL` (`blank`); the last reveals what is still masked.

    Tokens that are shown at the start stay as they are, so that the others are drawn given them. Returns tokens (N, L) and
    the dtype that they were drawn from.
    """
    x_NL = start_NL.clone()
    nfe, dtype = len(alphas) - 1, "float64"
    for k in range(nfe):
        flips_NL = masked.choose_flips(x_NL == mask_id, alphas[k], alphas[k + 1], generator)
        t_N = torch.full((len(x_NL),), 1.0 - k / nfe, device=generator.device)
        # Without a name: else the last call's logits would still be there in the next one.
        x_NL[flips_NL], dtype = masked.draw_tokens(denoiser(x_NL, flips_NL, t_N), generator, temperature)
    return x_NL, dtype


def sample_together(
    draw: Callable[[Tensor], Tensor], start_NL: Tensor, mask_id: int, alphas: list[float], generator: torch.Generator
) -> Tensor:
    """The same steps where a call draws all tokens (N, L) from one law of them; which are revealed is drawn blindly."""
    x_NL = start_NL
    for alpha_t, alpha_s in pairwise(alphas):
        flips_NL = masked.choose_flips(x_NL == mask_id, alpha_t, alpha_s, generator)
        x_NL = torch.where(flips_NL, draw(x_NL), x_NL)
    return x_NL


def path_nll(denoiser: Denoiser, x_NL: Tensor, mask_id: int, alphas: list[float], generator: torch.Generator) -> Tensor:
    """`-sum_k sum_{i in step k} log p(x_i | shown before k)` along one random path for each sequence, (N,) float64 nats.

    `exp(-path_nll)` has the mean q_K(x) over paths, so the mean of `path_nll` is an upper bound on `-log q_K(x)`.
    """
    nfe, masked_NL = len(alphas) - 1, torch.ones_like(x_NL, dtype=torch.bool)
    nll_N = torch.zeros(len(x_NL), dtype=torch.float64, device=x_NL.device)
    for k, (alpha_t, alpha_s) in enumerate(pairwise(alphas)):
        flips_NL = masked.choose_flips(masked_NL, alpha_t, alpha_s, generator)
        t_N = torch.full((len(x_NL),), 1.0 - k / nfe, device=x_NL.device)
        logits_MV = denoiser(torch.where(masked_NL, mask_id, x_NL), flips_NL, t_N)
        log_p_M = masked.log_p(logits_MV, x_NL[flips_NL])
        nll_N.index_add_(0, flips_NL.nonzero()[:, 0], -log_p_M)
        masked_NL = masked_NL & ~flips_NL
    return nll_N


def importance_nll(nll_MN: Tensor) -> Tensor:
    """`-log mean_m exp(-nll_m)` over M paths, (N,): the bound of Burda et al. (2016, eq. 8), tighter in the mean as M grows.

    Its mean is an upper bound on `-log q_K(x)` for every M and tends to it; M = 1 is the plain bound.
    """
    return math.log(len(nll_MN)) - torch.logsumexp(-nll_MN.double(), dim=0)
