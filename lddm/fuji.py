"""FUJI: one network denoises tokens and latents together, along a path of their two times (LDDM, section 4).

Trained on independent times, the same network serves every monotone path: both channels moving in every call, the latent
ahead by a power or an offset, the latent first.

Shapes: B batch, L tokens, V symbols, S slots, D dims, N sequences, M selected positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.diffusion import gaussian, masked
from harness.diffusion.paths import Step, latent_first_path, make_path
from harness.diffusion.schedules import LatentSchedule, stratified_times, token_schedule
from harness.errors import UserError, nearest
from harness.interface import Bound, Draw, Loss, Method, Problem, Stage
from harness.nn.networks import JointNetwork
from lddm import instruments
from lddm.bank import LatentBank
from lddm.latent import (
    LatentEncoder,
    LatentOptions,
    check_options,
    gaussian_noise,
    latent_mse,
    latent_terms,
    normal_gap,
    predicted_z0,
    token_times,
)

TIMES = ("path", "independent")
LATENTS = ("diffusion", "encoder")
TITLES = {"lead": "FUJI", "offset": "FUJI, offset", "latent_first": "FUJI, latent-first", "through": "FUJI, polyline"}


@dataclass
class FUJIOptions(LatentOptions):
    encoder_share: float = 0.4  # of the steps, in which the encoder learns; then it is frozen and the latent loss joins
    times: str = "path"  # trains on t_z = t_x^lead; "independent": on both times apart, for every path of sampling
    full_mask: float = 0.25  # share of a batch with every token masked, where times are independent
    bank: int = 2048  # encoded training sequences that the checkpoint keeps, for latents="encoder"
    lead: float = 2.0  # latent time is token time to this power: above 1 the latent is resolved ahead of the tokens
    # Of sampling alone (`lead` too, where times are independent): entries that differ in nothing else share their weights.
    path: str = "lead"  # "offset", "latent_first" or "through"; see harness.diffusion.paths
    offset: float = 0.3  # of path "offset": the token time from which on the latent is clean
    latent_share: float = 0.5  # of path "latent_first": the part of a budget that moves the latent
    corners: list[float] = field(default_factory=list)  # of path "through": token time and latent time of each in turn
    latents: str = "diffusion"  # "encoder": clean latents of training sequences, what a perfect latent would give


def _check(o: FUJIOptions) -> None:
    """Raise `UserError` for values that do not go together."""
    check_options(o)
    if not 0.0 < o.encoder_share < 1.0:
        raise UserError(f"encoder_share={o.encoder_share} is out of range; choose a value between 0 and 1")
    if o.bank < 2:
        raise UserError(f"bank={o.bank} is out of range; choose 2 or more")
    for name, choices in (("times", TIMES), ("latents", LATENTS)):
        value = getattr(o, name)
        if value not in choices:
            raise UserError(f"{name}='{value}' is unknown{nearest(value, choices)}")
    if o.times == "path" and o.path in TITLES and o.path != "lead":
        raise UserError(
            f"path='{o.path}' needs a network that was trained on it; choose times=independent, or path=lead"
        )
    if o.times == "path" and o.latents == "encoder":
        raise UserError(
            "latents='encoder' puts clean latents beside masked tokens, which times='path' never trains; "
            "choose times=independent"
        )
    if o.latents == "encoder" and o.path in TITLES and o.path != "lead":
        raise UserError(f"latents='encoder' moves the tokens alone, on no path='{o.path}'; choose path=lead")


class FUJI(Method):
    """Joint reverse process p(x_s, z_s | x_t, z_t) along a monotone path of (t_x, t_z)."""

    Options = FUJIOptions
    sampling_options = frozenset({"path", "offset", "latent_share", "corners", "latents", "eta"})

    def __init__(self, problem: Problem, options: FUJIOptions) -> None:
        super().__init__(problem, options)
        _check(options)
        o = options
        self.path = make_path(o.path, o.lead, o.offset, o.latent_share, o.corners)
        given = o.latents == "encoder"
        self.title = "FUJI, encoder latents" if given else TITLES[o.path]
        self.sampler = "given latents" if given else self.path.name
        # Latents of training sequences are no model of the data: the row says what the latent channel costs.
        self.role = "probe" if given else "method"
        if o.times == "independent":
            self.sampling_options = FUJI.sampling_options | {"lead"}
        self.schedule = token_schedule(o.schedule)
        self.latent_schedule = LatentSchedule(o.latent_shift)
        self.encoder = LatentEncoder(problem, o)
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

    def calibrate(self, x_NL: Tensor) -> None:
        self.encoder.calibrate(x_NL)
        self.bank.refill(self.encoder.mean, x_NL)

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

    def _times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (t_x, t_z) to train on, (B,) each: on the path, or apart; with a share of pure noise as the latent."""
        o = self.options
        if o.times == "path":
            t_x_B = stratified_times(count, generator)
            t_z_B = self.path.latent_time(t_x_B)
        else:
            t_x_B, t_z_B = token_times(count, o.full_mask, generator), stratified_times(count, generator)
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
        if o.match > 0:
            gap = normal_gap(z0_BSD, o.encoder_noise, generator)
            total, parts["match"] = total + o.match * gap, gap.detach()
        return Loss(total, parts)

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound | None:
        """The full bound along this entry's path: each integral has its own draw of its own time and its own call.

        Every monotone path gives a bound; where the latent comes first the two integrals separate. None for given latents.
        """
        if self.options.latents == "encoder":
            return None
        z0_BSD = self.encoder.sample(x_BL, generator)
        t_x_B = stratified_times(x_BL.shape[0], generator)
        tokens, _, _ = self._call(x_BL, z0_BSD, t_x_B, self.path.latent_time(t_x_B), generator)
        t_z_B, span = gaussian.bound_times(x_BL.shape[0], self.latent_schedule, self.encoder.noise, generator)
        _, out_BSD, zt_BSD = self._call(x_BL, z0_BSD, self.path.token_time(t_z_B), t_z_B, generator)
        z0_hat = predicted_z0(out_BSD, zt_BSD, t_z_B, self.latent_schedule, self.options.prediction)
        parts = {
            **latent_terms(z0_BSD, z0_hat, t_z_B, span, self.latent_schedule, self.encoder.noise),
            "tokens": tokens.nelbo_B.double(),
        }
        return Bound(sum(parts.values()), "NELBO with latent terms, one time per sequence and channel", parts)

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
            "latent_information_nats": instruments.information(mu_BSD, self.encoder.noise, generator),
            "latent_effective_dims": instruments.effective_dims(mu_BSD),
            **instruments.usage(z0_BSD[few], nats, generator),
            **instruments.by_time(lambda t: at(t, 0.0 if apart else beside(t, "latent_time"))[0], "token_loss", times),
            **instruments.by_time(lambda t: at(1.0 if apart else beside(t, "token_time"), t)[1], "latent_loss", times),
        }

    # ---- sampling -------------------------------------------------------------------------------------------------
    def check_budget(self, nfe: int) -> None:
        if self.options.path == "latent_first":
            self._steps(nfe)
        else:
            super().check_budget(nfe)

    def _steps(self, nfe: int) -> list[Step]:
        """The calls of a budget; given latents are clean from the start, and only the tokens move."""
        return latent_first_path(0, nfe) if self.options.latents == "encoder" else self.path.steps(nfe, self.title)

    def sample(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        """K calls along the path: each moves the latent, reveals tokens, or both; the last tokens go all at once."""
        self.check_budget(nfe)
        o, L, mask_id = self.options, self.problem.length, self.problem.vocab_size
        z = gaussian_noise((n, o.slots, o.dims), generator)
        if o.latents == "encoder":
            z = self.bank.draw(n, self.encoder.noise, generator)
        x_NL = torch.full((n, L), mask_id, dtype=torch.int64, device=z.device)
        dtype, zero_N, steps = "float64", torch.zeros(n, device=z.device), self._steps(nfe)
        for step in steps:
            flips_NL = torch.zeros_like(x_NL, dtype=torch.bool)
            if step.moves_tokens:
                ends = torch.tensor([step.t_x, step.s_x], dtype=torch.float64)
                alpha_t, alpha_s = self.schedule.alpha(ends).tolist()
                flips_NL = masked.choose_flips(x_NL == mask_id, max(alpha_t, 0.0), alpha_s, generator)
            logits_MV, out = self.network(x_NL, z, zero_N + step.t_x, zero_N + step.t_z, flips_NL)
            if step.moves_tokens:
                x_NL[flips_NL], dtype = masked.draw_tokens(logits_MV, generator, temperature)
            if step.moves_latent:
                z0_hat = predicted_z0(out, z, zero_N + step.t_z, self.latent_schedule, o.prediction)
                z = gaussian.latent_step(z, z0_hat, step.t_z, step.s_z, self.latent_schedule, o.eta, generator)
        token_calls = sum(step.moves_tokens for step in steps)
        return Draw(x_NL, nfe_latent=nfe - token_calls, nfe_token=token_calls, draw_dtype=dtype)
