"""SEQ: the latent is resolved first, by a network over the slots alone, then the tokens given it (LDDM, section 4).

Shapes: B batch, L tokens, V symbols, S slots, D dims, N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import ranged
from harness.diffusion import masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import stratified_times
from harness.errors import UserError
from harness.interface import Bound, Loss, Problem, Stage
from lddm import gaussian, instruments
from lddm.bank import LatentBank
from lddm.latent import LatentOptions, gaussian_noise, latent_mse, predicted_z0, token_times
from lddm.latent_model import GaussianLatentModel
from lddm.networks import JointNetwork, LatentNetwork, small_shape
from lddm.one_call import OneCallNetwork, one_call_loss


@dataclass
class SEQOptions(LatentOptions):
    stages: int = ranged(2, 1, 2)  # 1: the latent network learns beside the decoder, from a detached target; 2: after
    prior_depth: int = ranged(2, 1, 96)
    prior_width: int = ranged(0, 0, 65536)  # of the latent networks; 0: the backbone's
    prior_share: float = ranged(0.3, 0, 0.99)  # of the steps, with two stages
    one_call_share: float = ranged(0.0, 0, 0.99)  # of the steps, after the prior: a network that draws z0 in one call
    one_call_noise: int = ranged(8, 1, 4096)  # noise coordinates of each slot that it sees
    one_call_signs: bool = False  # it sees their signs too, across which it may jump: for latents in clusters
    one_call_window: int = ranged(2, 0, 4096)  # neighbouring slots that are compared by themselves too; 0: only all
    latent_batch: int = ranged(512, 2, 1 << 20)  # latents in a step of the latent stages, from a bank of encoded ones
    bank: int = ranged(8192, 2, 1 << 24)
    self_conditioning: float = ranged(0.0, 0, 1)  # share of a batch whose latent network sees its own first estimate
    decoder_noise: float = ranged(0.3, 0, 1)  # the decoder trains on latents diffused to times up to this one


def _check(o: SEQOptions) -> None:
    """Raise `UserError` for values that do not go together."""
    if o.one_call_share + (o.prior_share if o.stages == 2 else 0.0) >= 1.0:
        raise UserError(
            f"one_call_share={o.one_call_share} and prior_share={o.prior_share} leave no step for the tokens; "
            "choose shares that sum to less than 1"
        )


class SEQ(GaussianLatentModel):
    """p(z0) by Gaussian diffusion over the slots, p(x | z0) by masked diffusion with the latent beside the tokens."""

    Options = SEQOptions
    title = "SEQ"
    encoder_title = "SEQ, encoder latents"
    idle = (*GaussianLatentModel.idle, "decoder.latent_out")  # nothing reads the decoder's latent output

    def __init__(self, problem: Problem, options: SEQOptions) -> None:
        super().__init__(problem, options)
        _check(options)
        o, shape = options, problem.shape
        self.decoder = JointNetwork(shape, problem.vocab_size, o.slots, o.dims, o.time)
        self.decoder.latent_out.requires_grad_(False)
        small = small_shape(shape, o.prior_depth, o.prior_width)
        self.prior = LatentNetwork(small, o.slots, o.dims, problem.length)
        self.generator: OneCallNetwork | None = None
        if o.one_call_share > 0:
            self.generator = OneCallNetwork(small, o.slots, o.dims, problem.length, o.one_call_noise, o.one_call_signs)
        self.bank = LatentBank(o.bank, o.slots, o.dims)
        self._stage = "all"

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        o = self.options
        prior_share = o.prior_share if o.stages == 2 else 0.0
        first = Stage("tokens" if o.stages == 2 else "all", 1.0 - prior_share - o.one_call_share)
        later = (Stage("prior", prior_share), Stage("one_call", o.one_call_share))
        return first, *(stage for stage in later if stage.share > 0)

    def set_stage(self, name: str) -> None:
        self._stage = name
        self.encoder.freeze(name in ("prior", "one_call"))
        self.decoder.requires_grad_(name in ("all", "tokens"))
        self.decoder.latent_out.requires_grad_(False)
        self.prior.requires_grad_(name in ("all", "prior"))
        if self.generator is not None:
            self.generator.requires_grad_(name == "one_call")

    def _token_terms(
        self, x_BL: Tensor, z_BSD: Tensor, t_z_B: Tensor, t_B: Tensor, generator: torch.Generator
    ) -> masked.MaskedTerms:
        """Masked cross-entropies at token times t, given a latent at time t_z."""
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_B), self.problem.vocab_size, generator)
        logits_MV, _ = self.decoder(xt_BL, z_BSD, t_B.float(), t_z_B.float(), masked_BL)
        nll_B = masked.masked_nll(logits_MV, x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_B))

    def _token_loss(self, x_BL: Tensor, z0_BSD: Tensor, generator: torch.Generator) -> Loss:
        """Tokens given the encoder's latent, nats per token."""
        o, B = self.options, x_BL.shape[0]
        # Slightly diffused latents make the decoder tolerate the prior's errors; full noise keeps it a denoiser
        # that can do without the latent.
        uniform_B = torch.rand(B, generator=generator, dtype=torch.float64, device=x_BL.device)
        drop_B = torch.rand(B, generator=generator, device=x_BL.device) < o.latent_dropout
        t_z_B = torch.where(drop_B, 1.0, uniform_B * o.decoder_noise)
        z_BSD = gaussian.diffuse(z0_BSD, t_z_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        t_B = token_times(B, o.full_mask, generator, self.largest_time)
        terms = self._token_terms(x_BL, z_BSD, t_z_B, t_B, generator)
        total = terms.loss(o.loss, x_BL.shape[1])
        parts = {"token_nats_per_token": (terms.nll_B.sum() / terms.count_B.sum().clamp(min=1)).detach()}
        return self._matched(Loss(total, parts), z0_BSD, generator)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """By stage: tokens given the encoder's latent; the prior's squared error; the one-call sampler's distance."""
        o = self.options
        if self._stage in ("all", "tokens"):
            z0_BSD = self.encoder.sample(x_BL, generator)
            made = self._token_loss(x_BL, z0_BSD, generator)
            if self._stage == "tokens":
                return made
            latent = self._prior_loss(z0_BSD.detach(), generator)
            return Loss(made.total + o.latent_weight * latent, made.parts | {"latent_mse": latent.detach()})
        with torch.no_grad():
            self.bank.put(self.encoder.mean(x_BL))
            z0_BSD = self.bank.draw(o.latent_batch, o.encoder_noise, generator)
        if self._stage == "prior":
            latent = self._prior_loss(z0_BSD, generator)
            return Loss(latent, {"latent_mse": latent.detach()})
        assert self.generator is not None, "the stage is there only where it is"
        gap = one_call_loss(self.generator, z0_BSD, self.encoder.noise, o.one_call_window, generator)
        return Loss(gap, {"one_call_distance": gap.detach()})

    def _prior_loss(self, z0_BSD: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the prior at stratified times, a scalar; a share of the batch sees its own first estimate."""
        o, t_B = self.options, stratified_times(z0_BSD.shape[0], generator)
        zt_BSD = gaussian.diffuse(z0_BSD, t_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        previous = None
        if o.self_conditioning > 0:
            keep_B = torch.rand(len(t_B), generator=generator, device=zt_BSD.device) < o.self_conditioning
            with torch.no_grad():
                first = self.z0_hat(zt_BSD, t_B)
            previous = torch.where(keep_B[:, None, None], first, 0.0)
        out = self.prior(zt_BSD, t_B.float(), previous)
        return latent_mse(out, z0_BSD, zt_BSD, t_B, self.latent_schedule, o.prediction).mean()

    def z0_hat(self, zt_BSD: Tensor, t_B: Tensor, previous: Tensor | None = None) -> Tensor:
        """The prior's estimate of z0 from z_t, and from its own previous one where it conditions itself."""
        out = self.prior(zt_BSD, t_B.float(), previous)
        return predicted_z0(out, zt_BSD, t_B, self.latent_schedule, self.options.prediction)

    # ---- tokens given a latent ------------------------------------------------------------------------------------
    @property
    def has_prior(self) -> bool:
        """Whether the diffusion prior learns anything."""
        return self.options.stages == 1 or self.options.prior_share > 0

    def token_network(self) -> nn.Module:
        return self.decoder

    def denoiser(self, latent: Tensor) -> Denoiser:
        clean_N = torch.zeros(len(latent), device=latent.device)
        return lambda x_NL, select_NL, t_N: self.decoder(x_NL, latent, t_N, clean_N, select_NL)[0]

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound | None:
        """The full bound: encoder negentropy + latent diffusion (with its end terms) + tokens given z0.

        None where the prior was not trained.
        """
        if not self.has_prior:
            return None
        z0_BSD = self.encoder.sample(x_BL, generator)
        zero_B = torch.zeros(x_BL.shape[0], device=x_BL.device)
        t_B, span = gaussian.bound_times(x_BL.shape[0], self.latent_schedule, self.encoder.noise, generator)
        zt_BSD = gaussian.diffuse(z0_BSD, t_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        z0_hat = self.z0_hat(zt_BSD, t_B)
        token_t_B = token_times(x_BL.shape[0], 0.0, generator)
        tokens = self._token_terms(x_BL, z0_BSD, zero_B, token_t_B, generator)
        return self._bound(z0_BSD, z0_hat, t_B, span, tokens)

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        """Nats in the latent and what they are worth to the tokens; see `lddm.instruments`."""
        mu_BSD = self.encoder.mean(x_BL)
        z0_BSD = mu_BSD + self.encoder.noise * gaussian_noise(mu_BSD.shape, generator)
        few = slice(0, instruments.FEW)
        one_B, zero_B = torch.ones(len(x_BL), device=x_BL.device), torch.zeros(len(x_BL), device=x_BL.device)

        def nats(z_BSD: Tensor, t_z_B: Tensor, t: float = 1.0) -> float:
            n = len(z_BSD)
            t_B = torch.full((n,), t, dtype=torch.float64, device=z_BSD.device)
            return float(self._token_terms(x_BL[:n], z_BSD, t_z_B[:n], t_B, generator).nll_B.mean())

        given, blind = nats(z0_BSD, zero_B), nats(gaussian_noise(z0_BSD.shape, generator), one_B)
        return {
            "latent_nats_saved": blind - given,
            "latent_std": float(z0_BSD.std(0).mean()),
            **instruments.information(mu_BSD, self.encoder.noise, generator),
            "latent_effective_dims": instruments.effective_dims(mu_BSD),
            **instruments.usage(z0_BSD[few], lambda z: nats(z, zero_B), generator),
            **instruments.by_time(lambda t: nats(z0_BSD[few], zero_B, t), "token_loss", (0.25, 0.5, 0.75, 1.0)),
            **instruments.by_time(
                lambda t: self._latent_mse_at(z0_BSD, t, generator), "latent_loss", (0.25, 0.5, 0.75, 1.0)
            ),
        }

    def _latent_mse_at(self, z0_BSD: Tensor, t: float, generator: torch.Generator) -> float:
        """Mean squared error of the prior's estimate of z0 at one time, per coordinate."""
        t_B = torch.full((len(z0_BSD),), t, dtype=torch.float64, device=z0_BSD.device)
        zt_BSD = gaussian.diffuse(z0_BSD, t_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        return float((self.z0_hat(zt_BSD, t_B) - z0_BSD).square().mean())
