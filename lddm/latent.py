"""The encoder channel q(z0 | x) = N(mu(x), s^2 I) that FUJI and SEQ share, and what they share around it.

Each coordinate of each slot is standardised across the batch, never across slots or within a vector: a normalisation over
slots lets constants that differ by slot pass, and the encoder collapses to them. No gradient of a latent loss reaches
the encoder: the target is detached, and where the latent loss is trained the encoder is frozen or its output is detached.

Shapes: B batch, L tokens, S slots, D dims.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion.masked import LOSSES
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times
from harness.errors import UserError
from harness.interface import Problem
from harness.nn.pretrained import DTYPES
from lddm import gaussian
from lddm.gaussian import LatentSchedule
from lddm.kernel_score import distance
from lddm.networks import SlotEncoder
from lddm.pretrained import PretrainedSlots, TextReader

PREDICTIONS = ("x0", "v")
#: Share of a part in the running figures of the standardisation.
_MOMENTUM = 0.05


@dataclass
class LatentOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)  # of the tokens
    loss: str = chosen("masked_mean", LOSSES)  # of the tokens; see harness.diffusion.masked.MaskedTerms
    slots: int = ranged(8, 1, 4096)
    dims: int = ranged(8, 1, 4096)
    encoder_depth: int = ranged(1, 1, 96)
    encoder: str = ""  # or a text model of `transformers`, frozen: hub name, folder or minilm; see lddm.pretrained
    encoder_revision: str = ""  # its commit on the hub; empty: the one on this disk, or the newest
    encoder_dtype: str = chosen("float32", DTYPES)
    encoder_noise: float = ranged(0.5, 0, above=True)  # s: deviation of q(z0 | x) where the mean's is 1; 0 has no bound
    blank: bool = False  # a mean of 0 for every text: the same parameters and cost, and a latent that says nothing
    input_mask: float = ranged(0.0, 0, 0.95)  # tokens hidden from the encoder while it trains
    full_mask: float = ranged(0.25, 0, 1)  # share of a batch with every token masked: the latent says most
    match: float = ranged(0.0, 0, 1e6)  # weight of the distance between the latents of a batch and N(0, (1 + s^2) I)
    latent_dropout: float = ranged(0.1, 0, 1)  # share of a batch whose latent is replaced by pure noise
    latent_shift: float = ranged(1.0, 0, above=True)  # time shift of the latent schedule; above 1 towards high noise
    latent_weight: float = ranged(1.0, 0, 1e6)  # of the latent's mean squared error, beside the tokens' nats per token
    prediction: str = chosen("v", PREDICTIONS)  # v is preconditioned, so the bound stays finite at small noise
    time: str = chosen("add", ("add", "adaln"))  # how times enter the joint network


class Standardise(nn.BatchNorm1d):
    """Each coordinate to mean 0 and variance 1, by the sequences of a part; where there is one, by what was seen before it.

    A sequence by itself has no variance. Its step moves the running figures as a batch would, around the mean before it.
    Affine-free: a learned scale could undo the standardisation, and with it the meaning of the schedule.
    """

    def __init__(self, coordinates: int) -> None:
        super().__init__(coordinates, affine=False, momentum=_MOMENTUM)

    def forward(self, feature_BC: Tensor) -> Tensor:
        if not self.training or len(feature_BC) > 1:
            return super().forward(feature_BC)
        mean_C, var_C = self.running_mean, self.running_var
        assert mean_C is not None and var_C is not None
        mean_1C, var_1C = mean_C.clone(), var_C.clone()
        with torch.no_grad():
            off_C = feature_BC[0].float() - mean_C
            share = self.momentum or 0.0
            var_C.lerp_(off_C.square(), share)
            mean_C.lerp_(feature_BC[0].float(), share)
        return (feature_BC - mean_1C) * torch.rsqrt(var_1C + self.eps)


class LatentEncoder(nn.Module):
    """mu(x): slot features standardised per coordinate; `sample` adds the fixed noise."""

    def __init__(self, problem: Problem, options: LatentOptions) -> None:
        super().__init__()
        shape = replace(problem.shape, depth=options.encoder_depth)
        self.noise, self.input_mask, self.mask_id = options.encoder_noise, options.input_mask, problem.vocab_size
        self.slots, self.dims, self.blank = options.slots, options.dims, options.blank
        self.body: nn.Module
        if options.encoder:
            if options.input_mask > 0:
                raise UserError(
                    f"input_mask={options.input_mask}: a pretrained encoder reads whole texts; choose input_mask=0"
                )
            reader = TextReader(options.encoder, options.encoder_revision, options.encoder_dtype)
            self.body = PretrainedSlots(reader, problem.decode, options.slots, options.dims)
        else:
            self.body = SlotEncoder(shape, problem.vocab_size, options.slots, options.dims)
        self.standardise = Standardise(options.slots * options.dims)

    def mean(self, x_BL: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """mu(x), (B, S, D) float32; with a generator, and `input_mask` set, part of the input is hidden."""
        if self.input_mask > 0 and generator is not None and self.training:
            hide_BL = torch.rand(x_BL.shape, generator=generator, device=x_BL.device) < self.input_mask
            x_BL = torch.where(hide_BL, self.mask_id, x_BL)
        feature_BSD = self.body(x_BL)
        mu_BSD = self.standardise(feature_BSD.flatten(1)).view_as(feature_BSD)
        return 0.0 * mu_BSD if self.blank else mu_BSD

    def sample(self, x_BL: Tensor, generator: torch.Generator) -> Tensor:
        """z0 ~ q(z0 | x), (B, S, D)."""
        mu_BSD = self.mean(x_BL, generator)
        return mu_BSD + self.noise * gaussian_noise(mu_BSD.shape, generator)

    @torch.no_grad()
    def calibrate(self, x_NL: Tensor) -> None:
        """Set the standardisation to the exact mean and variance of the features of `x_NL` under the current weights."""
        feature_NC = torch.cat([self.body(x).flatten(1).double() for x in x_NL.split(256)])
        mean_C, var_C = self.standardise.running_mean, self.standardise.running_var
        assert mean_C is not None and var_C is not None
        mean_C.copy_(feature_NC.mean(0))
        var_C.copy_(feature_NC.var(0))

    def freeze(self, frozen: bool) -> None:
        """A frozen encoder keeps its statistics as well as its weights."""
        self.requires_grad_(not frozen)
        self.standardise.momentum = 0.0 if frozen else _MOMENTUM
        self.standardise.train(not frozen and self.training)


def token_times(count: int, full_mask: float, generator: torch.Generator, largest: float = 1.0) -> Tensor:
    """Token times (count,) float64, stratified and uniform up to `largest`, of which a share `full_mask` is set to 1."""
    t_B = stratified_times(count, generator, largest)
    if full_mask == 0.0:
        return t_B
    full_B = torch.rand(count, generator=generator, device=t_B.device) < full_mask
    return torch.where(full_B, torch.ones_like(t_B), t_B)


def normal_gap(z0_BSD: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Distance (`lddm.kernel_score`) between a batch of latents and as many draws of N(0, (1 + s^2) I), a scalar."""
    target = gaussian_noise(z0_BSD.shape, generator) * (1.0 + noise**2) ** 0.5
    return distance(z0_BSD, target, noise)


def gaussian_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def predicted_z0(out_BSD: Tensor, zt_BSD: Tensor, t_B: Tensor, schedule: LatentSchedule, prediction: str) -> Tensor:
    """Estimate of z0 from a network's output, which is z0 itself or v."""
    return out_BSD if prediction == "x0" else gaussian.z0_of_v(out_BSD, zt_BSD, t_B, schedule)


def latent_mse(out_BSD: Tensor, z0_BSD: Tensor, zt_BSD: Tensor, t_B: Tensor, schedule: LatentSchedule, prediction: str):
    """Mean squared error for each sequence and coordinate, (B,), in the space of the prediction (trained, not reported)."""
    target = z0_BSD
    if prediction == "v":
        view = (-1, 1, 1)
        a, sigma = schedule.a(t_B).view(view), schedule.sigma(t_B).view(view)
        # v = a eps - sigma z0 with eps = (z_t - a z0) / sigma, which is (a z_t - z0) / sigma.
        target = ((a * zt_BSD - z0_BSD) / sigma.clamp(min=1e-4)).float()
    return (out_BSD - target.detach()).square().flatten(1).mean(1)


def latent_terms(
    z0_BSD: Tensor, z0_hat: Tensor, t_B: Tensor, span: float, schedule: LatentSchedule, noise: float
) -> dict[str, Tensor]:
    """The latent's terms of the bound on -log p(x), nats (B,): encoder negentropy, end terms, and the diffusion between.

    `z0_hat` is the estimate of z0 at times `t_B`, drawn from a range of width `span` (`gaussian.bound_times`).
    """
    return {
        "encoder": torch.full_like(t_B, gaussian.encoder_negentropy(z0_BSD[0].numel(), noise)),
        "latent_ends": gaussian.endpoint_terms(z0_BSD, schedule, noise),
        "latent": gaussian.diffusion_term(z0_BSD, z0_hat, t_B, span, schedule),
    }
