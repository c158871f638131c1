"""The bound that a study reports of a cell: on held-out sequences, with its standard error.

Shapes: B batch, L tokens, N sequences.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from harness.interface import Sampler
from harness.study.cells import Cell
from harness.study.exact import against_truth
from harness.study.session import Session
from harness.training.seeds import step_generator


def measure_bound(session: Session, cell: Cell, sampler: Sampler) -> dict[str, Any]:
    """That on the study's own test sequences; where the data's law is known, also how far from it the model is."""
    test_NL = session.data.some("test", session.cfg.study.bound_sequences)
    total_N, found = bound_of(session, cell, sampler, test_NL)
    return found | against_truth(session, cell, sampler, test_NL, total_N, found.get("bound_exact", False))


@torch.no_grad()
def bound_of(
    session: Session, cell: Cell, sampler: Sampler, test_NL: np.ndarray
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The bound of each sequence, nats (N,), averaged over Monte Carlo draws, and what a study's facts say of all.

    Standard error over sequences; None where the sampler has no bound.
    """
    s, numerics = session.cfg.study, session.numerics
    total_N, estimator, exact = np.zeros(len(test_NL)), None, False
    parts: dict[str, float] = {}
    for draw in range(s.bound_draws):
        for start in range(0, len(test_NL), 256):
            x_BL = torch.from_numpy(test_NL[start : start + 256]).to(numerics.device)
            generator = step_generator(numerics.device, cell.seed, 5, draw, start)
            with numerics.autocast():
                bound = sampler.bound(x_BL, generator)
            if bound is None:
                return None, {"nelbo_nats_per_token": None, "nelbo_se": None, "bound_estimator": None}
            estimator, exact = bound.estimator, bound.exact
            total_N[start : start + 256] += bound.total_B.double().cpu().numpy() / s.bound_draws
            for name, value in bound.parts_B.items():
                parts[name] = parts.get(name, 0.0) + float(value.double().sum()) / total_N.size / s.bound_draws
        if exact:
            total_N *= s.bound_draws
            break
    tokens = test_NL.shape[1]
    return total_N, {
        "nelbo_nats_per_token": float(total_N.mean()) / tokens,
        "nelbo_se": float(total_N.std(ddof=1)) / math.sqrt(len(total_N)) / tokens if len(total_N) > 1 else None,
        "bound_exact": exact,
        "bound_estimator": f"{estimator}; {1 if exact else s.bound_draws} draw(s), {len(total_N)} test sequences",
        **{f"bound_{k}_nats": v for k, v in parts.items()},
    }
