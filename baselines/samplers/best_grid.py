"""The ancestral sampler of the exact denoiser on the times that cost it least: what the best schedule of reveals can do.

With h(a) the mean conditional entropy of a masked token where every other one is shown with probability a, the reveals of a
step from a to b cost `L (b - a) h(a)` nats where `L` times the integral of h would do; the sum over the steps less H(X) is
KL(p || q) of the declared paths. The grid of K steps with the least sum is found by dynamic programming on a grid of a.

Shapes: D draws, L tokens, V symbols, A values of a.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from baselines.oracle import Oracle
from baselines.samplers.ancestral import Ancestral

_DRAWS, _POINTS, _SEED = 256, 129, 20_261_127


class BestGrid(Ancestral):
    """Reverse steps between the alphas that lose the fewest nats."""

    methods = Oracle
    method: Oracle

    @property
    def title(self) -> str:
        return "Oracle, best schedule"

    def alphas(self, nfe: int) -> list[float]:
        return best_alphas(self._entropy_A, nfe)

    @cached_property
    def _entropy_A(self) -> np.ndarray:
        """h at A equal distances from 0 to 1, nats per token (A,)."""
        task, rng = self.method.task, np.random.default_rng(_SEED)
        x_DL = torch.from_numpy(task.sample(_DRAWS, rng))
        # One rank for each position of a draw: the same reveals at all values of a, which takes noise out of differences.
        rank_DL = torch.from_numpy(rng.random(x_DL.shape))
        found = []
        for a in np.linspace(0.0, 1.0, _POINTS)[:-1]:
            known_DL = rank_DL < a
            log_p_DLV = task.conditionals(x_DL, known_DL)
            entropy_DL = torch.special.entr(log_p_DLV.exp()).sum(-1)
            found.append(float(entropy_DL[~known_DL].mean()))
        return np.minimum.accumulate([*found, found[-1]])


def best_alphas(entropy_A: np.ndarray, nfe: int) -> list[float]:
    """The K + 1 alphas, from 0 to 1, that minimise `sum_k (a_{k+1} - a_k) h(a_k)`, on the grid on which h (A,) is given."""
    count = len(entropy_A)
    a_A = np.linspace(0.0, 1.0, count)
    step_AA = np.where(a_A[None, :] > a_A[:, None], (a_A[None, :] - a_A[:, None]) * entropy_A[:, None], np.inf)
    cost_A, before = np.where(a_A == 0.0, 0.0, np.inf), []
    for _ in range(min(nfe, count - 1)):
        total_AA = cost_A[:, None] + step_AA
        before.append(total_AA.argmin(0))
        cost_A = total_AA.min(0)
    places = [count - 1]
    for previous_A in reversed(before):
        places.append(int(previous_A[places[-1]]))
    grid = a_A[places[::-1]].tolist()
    # More steps than the grid has points: the longest ones are cut in two.
    while len(grid) < nfe + 1:
        widest = int(np.diff(grid).argmax())
        grid.insert(widest + 1, 0.5 * (grid[widest] + grid[widest + 1]))
    return grid
