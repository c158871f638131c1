"""The first-hitting sampler: the reverse process of masked diffusion by its jumps (Zheng et al. 2024, arXiv 2409.02908).

Each position has a level of alpha, uniform in (0, 1), at which it is revealed. Sorted, the levels give the order of the
reveals and their times, with no grid of time: with a call for each token this is the process itself, to which the ancestral
sampler tends as its steps grow. With fewer calls neighbours in that order are revealed together, as many in each call. A
sequence of a batch has levels of its own.

Shapes: N sequences, L tokens, K calls, M revealed positions in row-major order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.config.fields import NoOptions
from harness.diffusion import masked
from harness.errors import BudgetError
from harness.interface import Draw, Sampler


class FirstHitting(Sampler):
    """K calls, at most L; call k reveals the positions of rank `round(L k / K)` up to `round(L (k + 1) / K)`."""

    Options: type = NoOptions
    methods = MaskedModel
    method: MaskedModel

    @property
    def title(self) -> str:
        return f"{self.method.title}, first hitting"

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def check_budget(self, nfe: int) -> None:
        super().check_budget(nfe)
        length = self.method.problem.length
        if nfe > length:
            raise BudgetError(f"nfe={nfe} cannot be met by {self.title}: there are {length} tokens; use {length}")

    def steps(self, n: int, nfe: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """What each call reveals, (N, L) bool, and its time (N,): that of the first of its reveals."""
        length = self.method.problem.length
        level_NL = torch.rand((n, length), generator=generator, dtype=masked.DRAW_DTYPE, device=generator.device)
        sorted_NL, order_NL = level_NL.sort(dim=1)
        rank_NL = order_NL.argsort(dim=1)
        ends = [round(length * k / nfe) for k in range(nfe + 1)]
        for start, end in zip(ends, ends[1:], strict=False):
            yield (rank_NL >= start) & (rank_NL < end), self.method.schedule.time(sorted_NL[:, start]).float()

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.check_budget(nfe)
        m, dtype = self.method, "float64"
        x_NL = torch.full((n, m.problem.length), m.problem.vocab_size, dtype=torch.int64, device=generator.device)
        for reveal_NL, t_N in self.steps(n, nfe, generator):
            x_NL[reveal_NL], dtype = masked.draw_tokens(m.denoise(x_NL, reveal_NL, t_N), generator, temperature)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor:
        self.check_budget(nfe)
        shown_BL = torch.zeros_like(x_BL, dtype=torch.bool)
        nll_B = torch.zeros(len(x_BL), dtype=torch.float64, device=x_BL.device)
        for reveal_BL, t_B in self.steps(len(x_BL), nfe, generator):
            logits_MV = self.method.denoise(torch.where(shown_BL, x_BL, self.method.problem.vocab_size), reveal_BL, t_B)
            nll_B.index_add_(0, reveal_BL.nonzero()[:, 0], -masked.log_p(logits_MV, x_BL[reveal_BL]))
            shown_BL = shown_BL | reveal_BL
        return nll_B
