"""The schedule of reveals that costs an exact denoiser least: against trying all, and against the law of its steps."""

import itertools

import numpy as np
import pytest
import torch

from baselines.oracle import Oracle, OracleOptions
from baselines.samplers.ancestral import Ancestral
from baselines.samplers.best_grid import BestGrid, best_alphas
from harness.tasks.permutation import Permutation
from tests.kit.toys import generator_of, one_thread, sampler_of  # noqa: F401
from tests.kit.toys_exact import exact_problem


@pytest.mark.parametrize("nfe", [1, 2, 3, 4])
def test_it_is_the_grid_that_trying_all_finds(nfe):
    entropy_A = np.sort(np.random.default_rng(3).random(9))[::-1]
    a_A = np.linspace(0, 1, 9)

    def lost(places: tuple[int, ...]) -> float:
        return float(sum((a_A[b] - a_A[a]) * entropy_A[a] for a, b in itertools.pairwise(places)))

    grids = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), nfe - 1)]
    assert best_alphas(entropy_A, nfe) == pytest.approx(a_A[list(min(grids, key=lost))])


def test_more_calls_than_points_are_all_made():
    grid = best_alphas(np.linspace(1.0, 0.0, 5), 7)
    assert len(grid) == 8 and grid == sorted(set(grid)) and (grid[0], grid[-1]) == (0.0, 1.0)


def test_it_loses_less_than_equal_steps():
    """KL(p || q) of declared paths, on the same sequences. Of a permutation most is known when few places are left."""
    task = Permutation(8)
    method = Oracle(exact_problem(task), OracleOptions())
    x_NL, found = torch.from_numpy(task.sample(300, np.random.default_rng(0))), {}
    for kind in (Ancestral, BestGrid):
        nll_CN = torch.stack([sampler_of(method, kind).path_nll(x_NL, 3, generator_of(seed)) for seed in range(8)])
        found[kind] = nll_CN.mean(0)
    lower_N = found[Ancestral] - found[BestGrid]
    assert lower_N.mean() > 3 * lower_N.std() / len(lower_N) ** 0.5 > 0
    alphas = sampler_of(method, BestGrid).alphas(3)
    assert alphas[1] > 1 / 3 and (alphas[0], alphas[-1]) == (0.0, 1.0)
