"""What moves the weights of everything that is trained here, and the shape of its rate.

AdamW (Loshchilov and Hutter 2019) by itself, or with Muon (Jordan et al. 2024) on the matrices of the blocks: momentum that
is made nearly orthogonal by Newton-Schulz iterations, so that a step turns all directions of a matrix alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.schema import ScaleConfig, TrainConfig
from harness.training.shards import like, local, whole

#: Of a Newton-Schulz step. Three cost two fifths less than the usual five, and at equal FLOPs more is learnt (docs/log.md).
_ITERATIONS = 3

Decays = Callable[[str, Tensor], bool]


class Optimizer:
    """One or two optimizers of torch that step together on parameters of their own.

    `state` holds the moments of all parameters, as a checkpoint keeps them.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts, self.state = parts, parts[0].state
        for part in parts:
            part.state = self.state
        self._groups = [(group, group["lr"]) for part in parts for group in part.param_groups]

    def set_rate(self, share: float) -> None:
        """Every rate is this share of its peak from the next step on."""
        for group, peak in self._groups:
            group["lr"] = peak * share

    def step(self) -> None:
        for part in self._parts:
            part.step()


def block_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear maps in stacks of blocks (`nn.ModuleList`), each once.

    They map hidden states to hidden states: embeddings, heads and what reads a latent stand outside of the stacks.
    """
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    linear = [m for stack in stacks for m in stack.modules() if isinstance(m, nn.Linear)]
    return list(dict.fromkeys(p for m in linear for p in m.parameters(recurse=False) if p.dim() == 2))


def adamw(
    module: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, decays: Decays, muon_lr: float = 0.0
) -> Optimizer:
    """AdamW over all parameters of `module`, but for the matrices of its blocks if Muon moves those (`muon_lr` above 0).

    Those of which `decays` is true, given name and parameter, decay; Muon's all do.
    """
    matrices = block_matrices(module) if muon_lr else []
    theirs = set(matrices)
    named = [(n, p) for n, p in module.named_parameters() if p not in theirs]
    some, rest = [p for n, p in named if decays(n, p)], [p for n, p in named if not decays(n, p)]
    groups = [{"params": some, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    return Optimizer(plain, muon(matrices, muon_lr, weight_decay)) if matrices else Optimizer(plain)


class _Muon(torch.optim.Muon):
    """torch's, but for one product of all matrices of a size, a tall one being the transpose of a wide one: half its time.

    Matrices that are cut are gathered one by one, by all processes, which make the same step and keep their rows of it.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            sizes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    sizes.setdefault((min(p.shape), max(p.shape)), []).append(p)
            for (m, n), alike in sizes.items():
                at_once = len(alike) if local(alike[0]) is alike[0] else 1
                u_Gmn = torch.empty((at_once, m, n), dtype=torch.bfloat16, device=alike[0].device)
                for first in range(0, len(alike), at_once):
                    self._move(group, alike[first : first + at_once], u_Gmn)

    def _move(self, group: dict[str, Any], alike: list[Tensor], u_Gmn: Tensor) -> None:
        """One step of the G matrices of one size; `u_Gmn` is memory for it."""
        for p, u_mn in zip(alike, u_Gmn, strict=True):
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            kept = self.state[p]["momentum_buffer"]
            gradient: Any = p.grad
            local(kept).lerp_(local(gradient), 1.0 - group["momentum"])
            mixed = torch.empty_like(p)
            torch.lerp(local(gradient), local(kept), group["momentum"], out=local(mixed))
            u_mn.copy_(_wide(whole(mixed)))
        u_Gmn = _orthogonal(u_Gmn, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for p, u_mn in zip(alike, u_Gmn, strict=True):
            p.mul_(1.0 - group["lr"] * group["weight_decay"])
            size = math.sqrt(max(1.0, p.shape[0] / p.shape[1]))
            p.add_(like(u_mn if p.shape == u_mn.shape else u_mn.T, p), alpha=-group["lr"] * size)


def _wide(u_mn: Tensor) -> Tensor:
    return u_mn.T if len(u_mn) > u_mn.shape[1] else u_mn


def _orthogonal(u_Gmn: Tensor, abc: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iterations on wide matrices: singular values go towards 1, and the directions stay."""
    a, b, c = abc
    u_Gmn = u_Gmn / torch.linalg.matrix_norm(u_Gmn, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_Gmm = torch.bmm(u_Gmn, u_Gmn.mT)
        update_Gmm = torch.baddbmm(gram_Gmm, gram_Gmm, gram_Gmm, beta=b, alpha=c)
        u_Gmn = torch.baddbmm(u_Gmn, update_Gmm, u_Gmn, beta=a)
    return u_Gmn


def muon(matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Muon:
    """A step of m x n matrices has the size `lr` sqrt(max(1, m / n)) in spectral norm, about."""
    return _Muon(matrices, lr=lr, weight_decay=weight_decay, ns_steps=_ITERATIONS)


def method_optimizer(method: nn.Module, scale: ScaleConfig, train: TrainConfig) -> Optimizer:
    """The recipe's. Weight decay is for matrices only: gains, biases and embeddings are scales, not maps."""
    muon_lr = train.muon_lr if train.optimizer == "muon" else 0.0
    return adamw(method, scale.lr, (train.beta1, train.beta2), train.weight_decay, _is_map, muon_lr)


def _is_map(name: str, p: Tensor) -> bool:
    return p.dim() == 2 and "embed" not in name


def rehearse_step(module: nn.Module, train: TrainConfig) -> None:
    """The matrix products of an optimizer step on the gradients that `module` holds, without values and without effect."""
    moved = [p for p in block_matrices(module) if p.grad is not None]
    if train.optimizer == "muon" and moved:
        copies = [nn.Parameter(torch.empty_like(p, device="meta")) for p in moved]
        for copy in copies:
            copy.grad = torch.empty_like(copy)
        muon(copies, train.muon_lr, train.weight_decay).step()


def rate_at(step: int, steps: int, warm: int, final: float, decay: str = "cosine") -> float:
    """Share of the peak: linear warm-up over `warm` steps, then a cosine or linear decay to `final`, or none."""
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[decay]
    return final + (1 - final) * shape if decay != "constant" else 1.0


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """The rate in step `step` of a stage of `steps`, as a share of its peak."""
    return rate_at(step, steps, max(1, round(train.warmup * steps)), train.final_lr, train.decay)
