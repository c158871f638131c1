"""FUJI: one network denoises tokens and latents together, both channels moving in every call (LDDM, section 4).

Shapes: B batch, L tokens, V symbols, S slots, D dims, N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.diffusion import gaussian, masked
from harness.diffusion.paths import joint_path
from harness.diffusion.schedules import LatentSchedule, stratified_times, token_schedule
from harness.errors import UserError
from harness.interface import Bound, Draw, Loss, Method, Problem, Stage
from harness.nn.networks import JointNetwork
from lddm.latent import (
    LatentEncoder,
    LatentOptions,
    check_options,
    gaussian_noise,
    latent_mse,
    predicted_z0,
)


@dataclass
class FUJIOptions(LatentOptions):
    encoder_share: float = 0.4  # of the steps, in which the encoder learns; then it is frozen and the latent loss joins
    lead: float = 2.0  # latent time is token time to this power: above 1 the latent is resolved ahead of the tokens


class FUJI(Method):
    """Joint reverse process p(x_s, z_s | x_t, z_t) along t_x = tau, t_z = tau^lead."""

    Options = FUJIOptions
    title = "FUJI"
    sampler = "joint"

    def __init__(self, problem: Problem, options: FUJIOptions) -> None:
        super().__init__(problem, options)
        check_options(options)
        if not 0.0 < options.encoder_share < 1.0:
            raise UserError(f"encoder_share={options.encoder_share} is out of range; choose a value between 0 and 1")
        if not options.lead > 0:
            raise UserError(f"lead={options.lead} is out of range; choose a value above 0 (1 moves both times alike)")
        self.schedule = token_schedule(options.schedule)
        self.latent_schedule = LatentSchedule(options.latent_shift)
        self.encoder = LatentEncoder(problem, options)
        self.network = JointNetwork(problem.shape, problem.vocab_size, options.slots, options.dims, options.time)
        self._stage = "joint"

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        return Stage("encoder", self.options.encoder_share), Stage("joint", 1.0 - self.options.encoder_share)

    def set_stage(self, name: str) -> None:
        self._stage = name
        self.encoder.freeze(name == "joint")
        # The latent output has no loss while the encoder moves: its target would be a moving one.
        self.network.latent_out.requires_grad_(name == "joint")

    def calibrate(self, x_NL: Tensor) -> None:
        self.encoder.calibrate(x_NL)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"joint": self.network}

    def _call(
        self, x_BL: Tensor, z0_BSD: Tensor, t_x_B: Tensor, t_z_B: Tensor, generator: torch.Generator
    ) -> tuple[masked.MaskedTerms, Tensor, Tensor]:
        """Noise both channels to their times and call the network once: token terms, latent output and z_t."""
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_x_B), self.problem.vocab_size, generator)
        zt_BSD = gaussian.diffuse(z0_BSD, t_z_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        logits_MV, out_BSD = self.network(xt_BL, zt_BSD, t_x_B.float(), t_z_B.float(), masked_BL)
        nll_B = masked.masked_nll(logits_MV, x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_x_B)), out_BSD, zt_BSD

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Masked cross-entropy (nats per token); with the encoder frozen, plus the latent's squared error."""
        z0_BSD = self.encoder.sample(x_BL, generator)
        tau_B = stratified_times(x_BL.shape[0], generator)
        t_z_B = tau_B**self.options.lead
        drop_B = torch.rand(x_BL.shape[0], generator=generator, device=x_BL.device) < self.options.latent_dropout
        t_z_B = torch.where(drop_B, 1.0, t_z_B)
        terms, out_BSD, zt_BSD = self._call(x_BL, z0_BSD, tau_B, t_z_B, generator)
        token = terms.loss(self.options.loss, x_BL.shape[1])
        parts = {"token_nats_per_token": terms.nelbo_B.detach().mean() / x_BL.shape[1]}
        if self._stage == "encoder":
            return Loss(token, parts)
        mse_B = latent_mse(out_BSD, z0_BSD, zt_BSD, t_z_B, self.latent_schedule, self.options.prediction)
        latent = mse_B.mean()
        return Loss(token + self.options.latent_weight * latent, parts | {"latent_mse": latent.detach()})

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """The full bound along this method's path: each integral has its own draw of tau and its own call."""
        z0_BSD = self.encoder.sample(x_BL, generator)
        tau_B = stratified_times(x_BL.shape[0], generator)
        tokens, _, _ = self._call(x_BL, z0_BSD, tau_B, tau_B**self.options.lead, generator)
        t_z_B, span = gaussian.bound_times(x_BL.shape[0], self.latent_schedule, self.encoder.noise, generator)
        _, out_BSD, zt_BSD = self._call(x_BL, z0_BSD, t_z_B ** (1.0 / self.options.lead), t_z_B, generator)
        z0_hat = predicted_z0(out_BSD, zt_BSD, t_z_B, self.latent_schedule, self.options.prediction)
        parts = {
            "encoder": torch.full_like(t_z_B, gaussian.encoder_negentropy(z0_BSD[0].numel(), self.encoder.noise)),
            "latent_ends": gaussian.endpoint_terms(z0_BSD, self.latent_schedule, self.encoder.noise),
            "latent": gaussian.diffusion_term(z0_BSD, z0_hat, t_z_B, span, self.latent_schedule),
            "tokens": tokens.nelbo_B.double(),
        }
        return Bound(sum(parts.values()), "NELBO with latent terms, one time per sequence and channel", parts)

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        z0_BSD = self.encoder.sample(x_BL, generator)
        tau_B = stratified_times(x_BL.shape[0], generator)
        given, _, _ = self._call(x_BL, z0_BSD, tau_B, torch.zeros_like(tau_B), generator)
        blind, _, _ = self._call(x_BL, z0_BSD, tau_B, torch.ones_like(tau_B), generator)
        return {
            "latent_nats_saved": float(blind.nelbo_B.mean() - given.nelbo_B.mean()),
            "latent_std": float(z0_BSD.std(0).mean()),
        }

    # ---- sampling -------------------------------------------------------------------------------------------------
    def sample(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        """K joint calls; each moves the latent and reveals tokens, the last reveals all that are left."""
        self.check_budget(nfe)
        o, L, mask_id = self.options, self.problem.length, self.problem.vocab_size
        z = gaussian_noise((n, o.slots, o.dims), generator)
        x_NL = torch.full((n, L), mask_id, dtype=torch.int64, device=z.device)
        dtype = "float64"
        zero_N = torch.zeros(n, device=z.device)
        for step in joint_path(nfe, o.lead):
            ends = torch.tensor([step.t_x, step.s_x], dtype=torch.float64)
            alpha_t, alpha_s = self.schedule.alpha(ends).tolist()
            flips_NL = masked.choose_flips(x_NL == mask_id, max(alpha_t, 0.0), alpha_s, generator)
            logits_MV, out = self.network(x_NL, z, zero_N + step.t_x, zero_N + step.t_z, flips_NL)
            x_NL[flips_NL], dtype = masked.draw_tokens(logits_MV, generator, temperature)
            z0_hat = predicted_z0(out, z, zero_N + step.t_z, self.latent_schedule, o.prediction)
            z = gaussian.latent_step(z, z0_hat, step.t_z, step.s_z, self.latent_schedule, o.eta, generator)
        return Draw(x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)
