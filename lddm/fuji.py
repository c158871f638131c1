"""FUJI: one network denoises tokens and latents together, along a path of their two times (LDDM, section 4).

Trained on independent times, the same network serves every monotone path: both channels moving in every call, the latent
ahead by a power or an offset, the latent first.

Shapes: B batch, L tokens, V symbols, S slots, D dims, N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import stratified_times
from harness.errors import UserError
from harness.interface import Bound, Loss, Problem, Stage
from lddm import gaussian, instruments
from lddm.bank import LatentBank
from lddm.latent import LatentOptions, gaussian_noise, latent_mse, predicted_z0, token_times
from lddm.latent_model import GaussianLatentModel
from lddm.networks import JointNetwork
from lddm.paths import TimePath, make_path


@dataclass
class FUJIOptions(LatentOptions):
    encoder_share: float = ranged(0.4, 0, 1, above=True, below=True)  # of the steps, before the latent loss joins
    times: str = chosen("path", ("path", "independent"))  # t_z = t_x^lead, or both times apart, for every path
    full_mask: float = ranged(0.25, 0, 1)  # share of a batch with every token masked, where times are independent
    bank: int = ranged(2048, 2)  # encoded training sequences that the checkpoint keeps, for the sampler "encoder"
    lead: float = ranged(2.0, 0, above=True)  # latent time is token time to this power: above 1 the latent is ahead


class FUJI(GaussianLatentModel):
    """Joint reverse process p(x_s, z_s | x_t, z_t) along a monotone path of (t_x, t_z)."""

    Options = FUJIOptions
    title = "FUJI"
    encoder_title = "FUJI, encoder latents"

    def __init__(self, problem: Problem, options: FUJIOptions) -> None:
        super().__init__(problem, options)
        o = options
        self.path: TimePath = make_path("lead", o.lead)
        self.network = JointNetwork(problem.shape, problem.vocab_size, o.slots, o.dims, o.time)
        self.bank = LatentBank(o.bank, o.slots, o.dims)
        self._stage = "joint"

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        return Stage("encoder", self.options.encoder_share), Stage("joint", 1.0 - self.options.encoder_share)

    def set_stage(self, name: str) -> None:
        self._stage = name
        self.encoder.freeze(name == "joint")
        # The latent output has no loss while the encoder moves: its target would be a moving one.
        self.network.latent_out.requires_grad_(name == "joint")

    def _call(
        self, x_BL: Tensor, z0_BSD: Tensor, t_x_B: Tensor, t_z_B: Tensor, generator: torch.Generator
    ) -> tuple[masked.MaskedTerms, Tensor, Tensor]:
        """Noise both channels to their times and call the network once: token terms, latent output and z_t."""
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_x_B), self.problem.vocab_size, generator)
        zt_BSD = gaussian.diffuse(z0_BSD, t_z_B, self.latent_schedule, gaussian_noise(z0_BSD.shape, generator))
        logits_MV, out_BSD = self.network(xt_BL, zt_BSD, t_x_B.float(), t_z_B.float(), masked_BL)
        nll_B = masked.masked_nll(logits_MV, x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_x_B)), out_BSD, zt_BSD

    def _times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (t_x, t_z) to train on, (B,) each: on the path, or apart; with a share of pure noise as the latent."""
        o = self.options
        if o.times == "path":
            t_x_B = stratified_times(count, generator, self.largest_time)
            t_z_B = self.path.latent_time(t_x_B)
        else:
            t_x_B = token_times(count, o.full_mask, generator, self.largest_time)
            t_z_B = stratified_times(count, generator)
            # Both are stratified in the order of the batch: unshuffled, they would move together.
            t_z_B = t_z_B[torch.randperm(count, generator=generator, device=t_z_B.device)]
        drop_B = torch.rand(count, generator=generator, device=t_z_B.device) < o.latent_dropout
        return t_x_B, torch.where(drop_B, 1.0, t_z_B)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Masked cross-entropy (nats per token); with the encoder frozen, plus the latent's squared error."""
        o = self.options
        z0_BSD = self.encoder.sample(x_BL, generator)
        t_x_B, t_z_B = self._times(x_BL.shape[0], generator)
        terms, out_BSD, zt_BSD = self._call(x_BL, z0_BSD, t_x_B, t_z_B, generator)
        total = terms.loss(o.loss, x_BL.shape[1])
        parts = {"token_nats_per_token": (terms.nll_B.sum() / terms.count_B.sum().clamp(min=1)).detach()}
        if self._stage == "joint":
            latent = latent_mse(out_BSD, z0_BSD, zt_BSD, t_z_B, self.latent_schedule, o.prediction).mean()
            return Loss(total + o.latent_weight * latent, parts | {"latent_mse": latent.detach()})
        return self._matched(Loss(total, parts), z0_BSD, generator)

    # ---- tokens given a latent ------------------------------------------------------------------------------------
    def token_network(self) -> nn.Module:
        return self.network

    def denoiser(self, latent: Tensor) -> Denoiser:
        clean_N = torch.zeros(len(latent), device=latent.device)
        return lambda x_NL, select_NL, t_N: self.network(x_NL, latent, t_N, clean_N, select_NL)[0]

    def check_encoded(self) -> None:
        if self.options.times == "path":
            raise UserError(
                "sampler encoder puts clean latents beside masked tokens, which times=path never trains; "
                "choose times=independent"
            )

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator, path: TimePath | None = None) -> Bound:
        """The full bound along a path (t_z = t_x^lead, unless told): each integral has a draw of its time and a call.

        Every monotone path gives a bound; where the latent comes first the two integrals separate.
        """
        path = path or self.path
        z0_BSD = self.encoder.sample(x_BL, generator)
        t_x_B = stratified_times(x_BL.shape[0], generator)
        tokens, _, _ = self._call(x_BL, z0_BSD, t_x_B, path.latent_time(t_x_B), generator)
        t_z_B, span = gaussian.bound_times(x_BL.shape[0], self.latent_schedule, self.encoder.noise, generator)
        _, out_BSD, zt_BSD = self._call(x_BL, z0_BSD, path.token_time(t_z_B), t_z_B, generator)
        z0_hat = predicted_z0(out_BSD, zt_BSD, t_z_B, self.latent_schedule, self.options.prediction)
        return self._bound(z0_BSD, z0_hat, t_z_B, span, tokens)

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        """Nats in the latent and what they are worth to the tokens; see `lddm.instruments`.

        Independent times: all tokens masked beside clean latents (`latent_nats_saved`). Times on the path: along it
        (`latent_nats_saved_on_path`), since the network knows no other pair of times.
        """
        mu_BSD = self.encoder.mean(x_BL)
        z0_BSD = mu_BSD + self.encoder.noise * gaussian_noise(mu_BSD.shape, generator)
        few, apart = slice(0, instruments.FEW), self.options.times == "independent"
        noise = generator.get_state()

        def nats(z_BSD: Tensor, dropped: bool = False) -> float:
            again = torch.Generator(device=generator.device)
            again.set_state(noise)  # the same masks and noise for all: only the latent differs
            t_x_B = stratified_times(len(z_BSD), again)
            t_x_B = torch.ones_like(t_x_B) if apart else t_x_B
            t_z_B = torch.zeros_like(t_x_B) if apart else self.path.latent_time(t_x_B)
            t_z_B = torch.ones_like(t_x_B) if dropped else t_z_B
            terms, _, _ = self._call(x_BL[: len(z_BSD)], z_BSD, t_x_B, t_z_B, again)
            return float((terms.nll_B if apart else terms.nelbo_B).mean())

        def at(t_x: float, t_z: float) -> tuple[float, float]:
            one_B = torch.ones(len(z0_BSD[few]), dtype=torch.float64, device=z0_BSD.device)
            t_z_B = t_z * one_B
            terms, out, zt_BSD = self._call(x_BL[few], z0_BSD[few], t_x * one_B, t_z_B, generator)
            z0_hat = predicted_z0(out, zt_BSD, t_z_B, self.latent_schedule, self.options.prediction)
            return float(terms.nelbo_B.mean()), float((z0_hat - z0_BSD[few]).square().mean())

        def beside(t: float, other: str) -> float:
            return float(getattr(self.path, other)(torch.tensor([t], dtype=torch.float64)))

        times = (0.25, 0.5, 0.75, 1.0)
        return {
            "latent_nats_saved" if apart else "latent_nats_saved_on_path": nats(z0_BSD, dropped=True) - nats(z0_BSD),
            "latent_std": float(z0_BSD.std(0).mean()),
            **instruments.information(mu_BSD, self.encoder.noise, generator),
            "latent_effective_dims": instruments.effective_dims(mu_BSD),
            **instruments.usage(z0_BSD[few], nats, generator),
            **instruments.by_time(lambda t: at(t, 0.0 if apart else beside(t, "latent_time"))[0], "token_loss", times),
            **instruments.by_time(lambda t: at(1.0 if apart else beside(t, "token_time"), t)[1], "latent_loss", times),
        }
