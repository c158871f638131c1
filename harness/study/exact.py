"""How far a model's law is from the data's own, where that is known: KL(p || q) bounded from held-out sequences.

Both figures are means of `[bound on -log q(x)] + log p(x)` over x ~ p. Subtracting log p(x) for each sequence, and not the
entropy from the mean, takes most of the variance away and needs no entropy.

Shapes: N sequences, L tokens, M paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.ancestral import importance_nll
from harness.interface import Sampler
from harness.study.cells import Cell
from harness.study.session import Session
from harness.training.seeds import step_generator

#: At most so many sequences and paths for each budget.
SEQUENCES, PATHS = 512, 16
#: Calls on one sequence for each budget: of a network that was trained, and of exact conditionals, which cost far less.
TRAINED_CALLS, EXACT_CALLS = 2048, 65536
_CHUNK = 256


def share_calls(available: int, nfe: int, calls: int) -> tuple[int, int]:
    """(sequences N, paths M) of the bound at a budget: N first, as it is what the error falls with, then M.

    N * M * nfe is at most `calls`, unless one sequence and one path are more. One call has one path.
    """
    sequences = max(1, min(SEQUENCES, available, calls // nfe))
    return sequences, 1 if nfe == 1 else max(1, min(PATHS, calls // (nfe * sequences)))


def against_truth(
    session: Session, cell: Cell, sampler: Sampler, test_NL: np.ndarray, total_N: np.ndarray | None, exact: bool
) -> dict[str, Any]:
    """Facts of a cell, nats per sequence; {} where the data's law is not known.

    `total_N` is the bound on -log p of each of `test_NL` (None: there is none), `exact` says that it is the
    likelihood. `bound_excess_nats` is its distance from the truth. `reverse` holds, by budget, an upper bound on
    KL(p || q_K) of what is sampled there: `nats` from several paths where the method draws along paths, with `path_nats`
    from one (KL(p || q) for a declared path, whatever the number of paths), else from its likelihood.
    """
    task = session.data.task
    if task is None:
        return {}
    log_p_N = task.log_prob(torch.from_numpy(np.asarray(test_NL, dtype=np.int64))).numpy()
    facts: dict[str, Any] = {"bound_excess_nats": None, "bound_excess_nats_se": None, "reverse": {}}
    if total_N is not None:
        facts["bound_excess_nats"], facts["bound_excess_nats_se"] = _mean(total_N + log_p_N)
    for nfe in sorted({part.nfe for part in cell.parts if part.temperature == 1.0}):
        found = _by_paths(session, cell, sampler, test_NL, nfe)
        if found is not None:
            nll_MN, paths = found, len(found)
            nll_N, path_N = importance_nll(nll_MN).numpy(), nll_MN.mean(0).numpy()
            estimator = f"-log mean of exp(-path nll) over {paths} path(s), {len(nll_N)} test sequences"
        elif exact and total_N is not None:
            nll_N, path_N, estimator = total_N, None, f"exact likelihood, {len(total_N)} test sequences"
        else:
            continue
        nats, error = _mean(nll_N + log_p_N[: len(nll_N)])
        path_nats, path_error = (None, None) if path_N is None else _mean(path_N + log_p_N[: len(path_N)])
        facts["reverse"][str(nfe)] = {
            "nats": nats, "se": error, "path_nats": path_nats, "path_se": path_error, "estimator": estimator
        }  # fmt: skip
    return facts


@torch.no_grad()
def _by_paths(session: Session, cell: Cell, sampler: Sampler, test_NL: np.ndarray, nfe: int) -> Tensor | None:
    """-log q(x | path) for M paths of each of N sequences, (M, N) nats; None where the sampler has no paths."""
    if nfe < 1:
        return None
    sequences, paths = share_calls(len(test_NL), nfe, TRAINED_CALLS if cell.weights.trained else EXACT_CALLS)
    found = []
    for start, x_BL in _chunks(test_NL[:sequences], session.numerics.device):
        nll_MB = []
        for path in range(paths):
            generator = step_generator(session.numerics.device, cell.seed, 6, nfe, path, start)
            with session.numerics.autocast():
                nll_B = sampler.path_nll(x_BL, nfe, generator)
            if nll_B is None:
                return None
            nll_MB.append(nll_B.double().cpu())
        found.append(torch.stack(nll_MB))
    return torch.cat(found, dim=1)


def _chunks(x_NL: np.ndarray, device: str) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(x_NL), _CHUNK):
        yield start, torch.from_numpy(np.asarray(x_NL[start : start + _CHUNK], dtype=np.int64)).to(device)


def _mean(values_N: np.ndarray) -> tuple[float, float | None]:
    """Mean and its standard error over sequences; no error from one sequence."""
    n = len(values_N)
    return float(values_N.mean()), float(values_N.std(ddof=1)) / math.sqrt(n) if n > 1 else None
