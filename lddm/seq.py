"""SEQ: the latent is resolved first, by a network over the slots alone, then the tokens given it (LDDM, section 4).

Shapes: B batch, L tokens, V symbols, S slots, D dims, N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.diffusion import gaussian, masked
from harness.diffusion.paths import latent_first_path, split_calls
from harness.diffusion.schedules import LatentSchedule, stratified_times, token_schedule
from harness.interface import Bound, Draw, Loss, Method, Problem, Stage
from harness.nn.networks import JointNetwork, LatentNetwork
from lddm.latent import (
    LatentEncoder,
    LatentOptions,
    check_options,
    check_ranges,
    gaussian_noise,
    latent_mse,
    predicted_z0,
)


@dataclass
class SEQOptions(LatentOptions):
    stages: int = 1  # 1: the latent network learns beside the decoder, from a detached target; 2: after it
    prior_depth: int = 2
    prior_share: float = 0.3  # of the steps, with two stages
    self_conditioning: float = 0.5  # share of a batch whose latent network sees its own first estimate
    decoder_noise: float = 0.3  # the decoder trains on latents diffused to times up to this one
    latent_share: float = 0.5  # of a budget K that goes to K_z


RANGES = {
    "stages": (1, 2),
    "prior_depth": (1, 96),
    "prior_share": (0.01, 0.99),
    "self_conditioning": (0.0, 1.0),
    "decoder_noise": (0.0, 1.0),
    "latent_share": (0.0, 1.0),
}


class SEQ(Method):
    """p(z0) by Gaussian diffusion over the slots, p(x | z0) by masked diffusion with the latent beside the tokens."""

    Options = SEQOptions
    title = "SEQ"
    sampler = "latent-first"

    def __init__(self, problem: Problem, options: SEQOptions) -> None:
        super().__init__(problem, options)
        check_options(options)
        check_ranges(options, RANGES)
        self.schedule = token_schedule(options.schedule)
        self.latent_schedule = LatentSchedule(options.latent_shift)
        self.encoder = LatentEncoder(problem, options)
        self.decoder = JointNetwork(problem.shape, problem.vocab_size, options.slots, options.dims, options.time)
        # Nothing is read from the decoder's latent output, so it has none to train.
        self.decoder.latent_out.requires_grad_(False)
        prior_shape = replace(problem.shape, depth=options.prior_depth)
        self.prior = LatentNetwork(prior_shape, options.slots, options.dims, problem.length)
        self._stage = "all"

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        if self.options.stages == 1:
            return (Stage("all"),)
        return Stage("decoder", 1.0 - self.options.prior_share), Stage("prior", self.options.prior_share)

    def set_stage(self, name: str) -> None:
        self._stage = name
        self.encoder.freeze(name == "prior")
        self.decoder.requires_grad_(name != "prior")
        self.decoder.latent_out.requires_grad_(False)
        self.prior.requires_grad_(name != "decoder")

    def calibrate(self, x_NL: Tensor) -> None:
        self.encoder.calibrate(x_NL)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"latent": self.prior, "token": self.decoder}

    def _token_terms(
        self, x_BL: Tensor, z_BSD: Tensor, t_z_B: Tensor, generator: torch.Generator
    ) -> masked.MaskedTerms:
        """Masked cross-entropies given a latent at time t_z."""
        t_B = stratified_times(x_BL.shape[0], generator)
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        logits_MV, _ = self.decoder(xt_BL, z_BSD, t_B.float(), t_z_B.float(), masked_BL)
        nll_B = masked.masked_nll(logits_MV, x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_B))

    def _latent_loss(self, z0_BSD: Tensor, generator: torch.Generator) -> Tensor:
        t_B = stratified_times(z0_BSD.shape[0], generator)
        zt_BSD = gaussian.diffuse(z0_BSD, t_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        previous = None
        if self.options.self_conditioning > 0:
            keep_B = torch.rand(len(t_B), generator=generator, device=zt_BSD.device) < self.options.self_conditioning
            with torch.no_grad():
                first = self._z0_hat(zt_BSD, t_B, None)
            previous = torch.where(keep_B[:, None, None], first, 0.0)
        out = self.prior(zt_BSD, t_B.float(), previous)
        return latent_mse(out, z0_BSD, zt_BSD, t_B, self.latent_schedule, self.options.prediction).mean()

    def _z0_hat(self, zt_BSD: Tensor, t_B: Tensor, previous: Tensor | None) -> Tensor:
        out = self.prior(zt_BSD, t_B.float(), previous)
        return predicted_z0(out, zt_BSD, t_B, self.latent_schedule, self.options.prediction)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Tokens given the encoder's latent (nats per token), plus the latent network's error on a detached target."""
        z0_BSD = self.encoder.sample(x_BL, generator)
        parts, total = {}, x_BL.new_zeros((), dtype=torch.float32)
        if self._stage != "prior":
            # Slightly diffused latents make the decoder tolerate the prior's errors; full noise keeps it a denoiser
            # that can do without the latent.
            uniform_B = torch.rand(x_BL.shape[0], generator=generator, dtype=torch.float64, device=x_BL.device)
            drop_B = torch.rand(x_BL.shape[0], generator=generator, device=x_BL.device) < self.options.latent_dropout
            t_z_B = torch.where(drop_B, 1.0, uniform_B * self.options.decoder_noise)
            z_BSD = gaussian.diffuse(z0_BSD, t_z_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
            terms = self._token_terms(x_BL, z_BSD, t_z_B, generator)
            total = total + terms.loss(self.options.loss, x_BL.shape[1])
            parts["token_nats_per_token"] = terms.nelbo_B.detach().mean() / x_BL.shape[1]
        if self._stage != "decoder":
            latent = self._latent_loss(z0_BSD.detach(), generator)
            total, parts["latent_mse"] = total + self.options.latent_weight * latent, latent.detach()
        return Loss(total, parts)

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """The full bound: encoder negentropy + latent diffusion (with its end terms) + tokens given z0."""
        z0_BSD = self.encoder.sample(x_BL, generator)
        zero_B = torch.zeros(x_BL.shape[0], device=x_BL.device)
        t_B, span = gaussian.bound_times(x_BL.shape[0], self.latent_schedule, self.encoder.noise, generator)
        zt_BSD = gaussian.diffuse(z0_BSD, t_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        z0_hat = self._z0_hat(zt_BSD, t_B, None)
        parts = {
            "encoder": torch.full_like(t_B, gaussian.encoder_negentropy(z0_BSD[0].numel(), self.encoder.noise)),
            "latent_ends": gaussian.endpoint_terms(z0_BSD, self.latent_schedule, self.encoder.noise),
            "latent": gaussian.diffusion_term(z0_BSD, z0_hat, t_B, span, self.latent_schedule),
            "tokens": self._token_terms(x_BL, z0_BSD, zero_B, generator).nelbo_B.double(),
        }
        return Bound(sum(parts.values()), "NELBO with latent terms, one time per sequence and channel", parts)

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        z0_BSD = self.encoder.sample(x_BL, generator)
        zero_B, one_B = torch.zeros(len(x_BL), device=x_BL.device), torch.ones(len(x_BL), device=x_BL.device)
        given = self._token_terms(x_BL, z0_BSD, zero_B, generator).nelbo_B.mean()
        blind = self._token_terms(x_BL, gaussian_noise(z0_BSD.shape, generator), one_B, generator).nelbo_B.mean()
        return {"latent_nats_saved": float(blind - given), "latent_std": float(z0_BSD.std(0).mean())}

    # ---- sampling -------------------------------------------------------------------------------------------------
    def check_budget(self, nfe: int) -> None:
        split_calls(nfe, self.options.latent_share, self.title)

    def sample(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        """K_z calls of the latent network over S slots, then K_x calls of the decoder; both count in full."""
        latent_calls, token_calls = split_calls(nfe, self.options.latent_share, self.title)
        o, L, mask_id = self.options, self.problem.length, self.problem.vocab_size
        z = gaussian_noise((n, o.slots, o.dims), generator)
        x_NL = torch.full((n, L), mask_id, dtype=torch.int64, device=z.device)
        previous, dtype = None, "float64"
        zero_N = torch.zeros(n, device=z.device)
        for step in latent_first_path(latent_calls, token_calls):
            if step.moves_latent:
                t_N = torch.full((n,), step.t_z, device=z.device)
                z0_hat = self._z0_hat(z, t_N, previous)
                previous = z0_hat if o.self_conditioning > 0 else None
                z = gaussian.latent_step(z, z0_hat, step.t_z, step.s_z, self.latent_schedule, o.eta, generator)
                continue
            ends = torch.tensor([step.t_x, step.s_x], dtype=torch.float64)
            alpha_t, alpha_s = self.schedule.alpha(ends).tolist()
            flips_NL = masked.choose_flips(x_NL == mask_id, max(alpha_t, 0.0), alpha_s, generator)
            logits_MV, _ = self.decoder(x_NL, z, zero_N + step.t_x, zero_N, flips_NL)
            x_NL[flips_NL], dtype = masked.draw_tokens(logits_MV, generator, temperature)
        return Draw(x_NL, nfe_latent=latent_calls, nfe_token=token_calls, draw_dtype=dtype)
