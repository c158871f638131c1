"""The ancestral sampler on a cosine grid of times: few tokens in the first calls, where least is known (MaskGIT, section 3.2).

With `t_k = cos(pi k / 2 K)` the share of tokens that is still masked after call k falls slowly first and fast at the end
(Chang et al. 2022, arXiv 2202.04200). The network and its training are as they were: only the steps are of other lengths.
"""

from __future__ import annotations

import math

import torch

from baselines.samplers.ancestral import Ancestral


class CosineGrid(Ancestral):
    """Reverse steps between the times `cos(pi k / 2 K)`, k = 0..K, under the method's own schedule."""

    @property
    def title(self) -> str:
        return f"{self.method.title}, cosine grid"

    def alphas(self, nfe: int) -> list[float]:
        t = torch.tensor([math.cos(0.5 * math.pi * k / nfe) for k in range(nfe + 1)], dtype=torch.float64)
        return [0.0, *self.method.schedule.alpha(t)[1:-1].tolist(), 1.0]
