"""UDLM: uniform-state diffusion (Schiff et al. 2024, arXiv 2412.10193), with Duo's curriculum (Sahoo et al. 2025, 2506.10892).

Shapes: B batch, L tokens, V symbols, M = B L positions in row-major order, R of them in a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked, uniform
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times, token_schedule
from harness.interface import Bound, Loss, Method, Problem, Stage
from harness.nn.networks import TokenNetwork
from harness.nn.slices import Logits


@dataclass
class UDLMReading:
    """How the output of a uniform-state denoiser is read."""

    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    reads: str = chosen("leave_one_out", ("leave_one_out", "posterior"))  # what the network's output is taken for


@dataclass
class UDLMOptions(UDLMReading):
    loss: str = chosen(
        "denoising", ("denoising", "nelbo")
    )  # cross-entropy of the posterior of each token, or the bound
    curriculum: float = ranged(0.0, 0, 1, below=True)  # share of the steps, the first ones, on softened noise (Duo)
    softness: float = ranged(0.1, 0, above=True)  # temperature of the softened noise


class UDLM(Method):
    """Its network sees noisy tokens and their time; `harness.diffusion.uniform` says how its output is read."""

    Options: type = UDLMOptions

    def __init__(self, problem: Problem, options: UDLMOptions) -> None:
        super().__init__(problem, options)
        self.schedule = token_schedule(options.schedule)
        self.network = self.make_network()
        self.title = self.title or ("Duo" if options.curriculum else "UDLM")
        self._soft = False

    def make_network(self) -> TokenNetwork:
        """The denoiser, new."""
        return TokenNetwork(self.problem.shape, self.problem.vocab_size, time=True)

    def networks(self) -> Mapping[str, nn.Module]:
        """What the samplers call."""
        return {"token": self.network}

    def stages(self) -> tuple[Stage, ...]:
        share = self.options.curriculum
        return (Stage("curriculum", share), Stage("tokens", 1.0 - share)) if share else (Stage("tokens"),)

    def set_stage(self, name: str) -> None:
        self._soft = name == "curriculum"

    def leave_one_out(
        self, seen: Tensor, z_BL: Tensor, t_B: Tensor, network: nn.Module | None = None
    ) -> tuple[Logits, Tensor]:
        """Logits (M, V) of the leave-one-out denoiser at times t, and alpha at each position (M,): one network call.

        `seen` is z, or the softened noise (B, L, V) whose argmax z is; `network` is one in the place of the method's own.
        """
        alpha_M = self.schedule.alpha(t_B).clamp(1e-9, 1 - 1e-9).repeat_interleave(z_BL.shape[1])
        logits_MV = Logits.of((network or self.network)(seen, None, t_B.float()))
        if self.options.reads == "posterior":
            logits_MV = logits_MV.then(uniform.without_own, z_BL.flatten(), alpha_M)
        return logits_MV, alpha_M

    def _nelbo(self, logits_MV: Logits, z_BL: Tensor, x_BL: Tensor, alpha_M: Tensor, t_B: Tensor) -> Tensor:
        """One draw of the continuous-time NELBO, (B,) float64 nats."""
        rows = z_BL.flatten(), x_BL.flatten(), alpha_M
        whole = torch.is_grad_enabled()
        rate_M = (
            uniform.rate_loss(logits_MV.whole(), *rows)
            if whole
            else masked.by_rows(uniform.rate_loss, logits_MV, *rows)
        )
        weight_B = -self.schedule.slope(t_B) / self.schedule.alpha(t_B).clamp(min=1e-9)
        return weight_B * rate_M.view(x_BL.shape).sum(1)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """ "denoising" has the same optimum as the bound and less variance, as the masked mean has for MDLM."""
        t_B = stratified_times(len(x_BL), generator, self.largest_time)
        alpha_B, V = self.schedule.alpha(t_B), self.problem.vocab_size
        if self._soft:
            z_BL, seen = uniform.lifted(x_BL, alpha_B, V, self.options.softness, generator)
        else:
            z_BL = seen = uniform.corrupt(x_BL, alpha_B, V, generator)
        logits_MV, alpha_M = self.leave_one_out(seen, z_BL, t_B)
        if self.options.loss == "nelbo":
            total = self._nelbo(logits_MV, z_BL, x_BL, alpha_M, t_B).mean().float() / x_BL.shape[1]
        else:
            posterior_MV = logits_MV.then(uniform.with_own, z_BL.flatten(), alpha_M)
            total = masked.token_nll(posterior_MV, x_BL.flatten()).mean()
        return Loss(total, {f"{self.options.loss}_nats_per_token": total.detach()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        # Tokens that are noise at small times are rare and cost 1/t: with uniform times the variance has no end.
        u_B = stratified_times(len(x_BL), generator)
        t_B = u_B**3
        z_BL = uniform.corrupt(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        logits_MV, alpha_M = self.leave_one_out(z_BL, z_BL, t_B)
        total_B = 3.0 * u_B**2 * self._nelbo(logits_MV, z_BL, x_BL, alpha_M, t_B)
        return Bound(
            total_B, "continuous-time NELBO of the uniform process, one time t = u^3 per sequence, u stratified"
        )
