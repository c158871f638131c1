"""Instruments on a latent: how many nats are in it, where they sit, and what they are worth to the tokens.

Shapes: B sequences, L tokens, S slots, D dims, M entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Sequences of the instruments that call the networks many times (one call for each slot, dim and time).
FEW = 64


def information(mu_BSD: Tensor, noise: float, generator: torch.Generator) -> dict[str, float]:
    """Lower bound on I(X; z0) in nats per sequence, and its ceiling log B: there it says no more than "at least".

    E[log q(z|x) - log mean_m q(z|x_m)] over the batch (Poole et al. 2019, section 2.3: InfoNCE with the encoder's own
    density as critic).
    """
    mu_BC = mu_BSD.flatten(1).double()
    eps_BC = torch.randn(mu_BC.shape, generator=generator, dtype=torch.float64, device=mu_BC.device)
    z_BC = mu_BC + noise * eps_BC
    log_q_BB = -0.5 * torch.cdist(z_BC, mu_BC).square() / noise**2
    ceiling = math.log(len(mu_BC))
    nats = float((log_q_BB.diagonal() - torch.logsumexp(log_q_BB, 1)).mean()) + ceiling
    return {"latent_information_nats": nats, "latent_information_ceiling_nats": ceiling}


def effective_dims(mu_BSD: Tensor) -> float:
    """Participation ratio of the covariance of mu: S D where all coordinates vary alike, 1 where one direction does."""
    mu_BC = mu_BSD.flatten(1).double()
    eigen_C = torch.linalg.eigvalsh(torch.cov(mu_BC.T).reshape(mu_BC.shape[1], -1)).clamp(min=0.0)
    return float(eigen_C.sum() ** 2 / eigen_C.square().sum().clamp(min=1e-12))


def usage(z0_BSD: Tensor, token_nats: Callable[[Tensor], float], generator: torch.Generator) -> dict[str, float]:
    """Nats per sequence that the tokens lose when one slot, or one dim of all slots, comes from another sequence.

    `token_nats(z)` is the cross-entropy of all tokens given only the latent. Keys `usage_slot<k>` and `usage_dim<k>`.
    """
    base = token_nats(z0_BSD)
    other_BSD = z0_BSD[torch.randperm(len(z0_BSD), generator=generator, device=z0_BSD.device)]
    found = {}
    for axis, name in ((1, "slot"), (2, "dim")):
        for k in range(z0_BSD.shape[axis]):
            mixed_BSD = z0_BSD.clone()
            mixed_BSD.select(axis, k).copy_(other_BSD.select(axis, k))
            found[f"usage_{name}{k:02d}"] = token_nats(mixed_BSD) - base
    return found


def by_time(loss_at: Callable[[float], float], name: str, times: tuple[float, ...]) -> dict[str, float]:
    """A loss at each of a few times, and each one's share of their sum: `<name>_t<time>`, `<name>_share_t<time>`."""
    values = {t: loss_at(t) for t in times}
    total = sum(values.values())
    found = {f"{name}_t{t:g}": v for t, v in values.items()}
    return found | {f"{name}_share_t{t:g}": v / total if total else 0.0 for t, v in values.items()}
