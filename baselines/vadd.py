"""VADD: a masked denoiser with a latent vector that a second network recognises (Xie et al. 2025, arXiv 2505.17384).

`p(x0 | x_t) = E_z prod_i p(x0_i | x_t, z)` with z ~ N(0, I): the tokens of a call are drawn apart given z, which is fresh
in each call. What is trained is the bound of that joint law, `E_q[-log p(x0 | x_t, z)] + KL(q(z | x0, x_t) || N(0, I))`.
q sees the whole text and which of its tokens are masked: z has to say what they are, and nothing of the others.

- The KL collapses: a denoiser that has learnt to do without z leaves q nothing to say. So in the first steps all is masked
  and the KL is free (`warm_share`, `warm_weight`). `latent_kl_nats_t1` near 0 says that it has collapsed.
- With the weights of MDLM's bound this sum is no bound on -log p(x): it takes the masked tokens to be drawn together at each
  time, and of L equal tokens of entropy H it would read H / L. Two honest ones are reported. `bound` is that of many calls,
  in each of which a token or none is drawn: z is then a mixture for one token, averaged over `draws` of its prior (Burda
  et al. 2016, eq. 8). That of K calls, with the whole KL in each, is `path_nll` of the sampler (`prior`), and of one call
  the instrument `one_call_bound_nats`.

The network is that of `noise_mdlm`: z comes in where a mask is. Width and depth of q are ours.

Shapes: B batch, L tokens, V symbols (id V is the mask), D latent coordinates, E width, M draws, R masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from baselines.noise_mdlm import NoiseModel
from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.ancestral import importance_nll
from harness.diffusion.schedules import TOKEN_SCHEDULES, stratified_times
from harness.interface import Bound, Loss, Problem, Stage
from harness.nn.slices import by_sequences
from harness.nn.transformer import Trunk

_TIMES = (0.25, 0.5, 0.75, 1.0)
#: Nats of KL from which on a coordinate counts as used (Burda et al. 2016, section 5.1, has .01 of a variance).
_USED = 0.01


@dataclass
class VADDOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)
    loss: str = chosen("masked_mean", masked.LOSSES)  # weights of cross-entropy and KL at a time
    noise: int = ranged(4, 1, 4096)  # coordinates of z
    depth: int = ranged(1, 1, 96)  # blocks of the recognition network
    full_mask: float = ranged(0.25, 0, 1)  # share of a batch with every token masked: there z has most to say
    kl_weight: float = ranged(1.0, 0, 1e6)  # below 1 z says more, and its prior fits less what it says
    warm_share: float = ranged(0.5, 0, 0.99)  # of the steps, before all others, with all masked
    warm_weight: float = ranged(0.0, 0, 1e6)  # the KL's weight in them
    free_nats: float = ranged(0.0, 0, 1e6)  # of KL a masked token that cost nothing (Kingma et al. 2016)
    draws: int = ranged(8, 1, 4096)  # of z, that the bound of a token averages over


class Recognition(nn.Module):
    """Whole texts (B, L) and where they are masked (B, L) to mean and log deviation of z, (B, D) each, float32."""

    def __init__(self, problem: Problem, options: VADDOptions) -> None:
        super().__init__()
        width = problem.shape.width
        self.embed = nn.Embedding(problem.vocab_size, width)
        self.masked = nn.Embedding(2, width)
        # The trunk's positions are relative, and where in the text something stands is what z may have to say.
        self.place = nn.Parameter(torch.randn(problem.length, width))
        self.trunk = Trunk(replace(problem.shape, depth=options.depth))
        self.out = nn.Linear(width, 2 * options.noise)
        # z says something of the text from the first step: where neither it nor its use does, both have no gradient.
        nn.init.normal_(self.out.weight[: options.noise], std=2.0 * width**-0.5)
        nn.init.zeros_(self.out.weight[options.noise :])
        nn.init.zeros_(self.out.bias[: options.noise])
        nn.init.constant_(self.out.bias[options.noise :], -2.0)

    def forward(self, x_BL: Tensor, masked_BL: Tensor) -> tuple[Tensor, Tensor]:
        mean_BD, log_s_BD = by_sequences(self._law, x_BL, masked_BL).chunk(2, dim=1)
        return mean_BD, log_s_BD

    def _law(self, x_BL: Tensor, masked_BL: Tensor) -> Tensor:
        h_BLE = self.embed(x_BL) + self.masked(masked_BL.long()) + self.place
        h_BLE, _ = self.trunk(h_BLE, torch.arange(x_BL.shape[1], device=x_BL.device))
        hidden_BL1 = masked_BL[..., None].to(h_BLE.dtype)
        return self.out((h_BLE * hidden_BL1).sum(1) / hidden_BL1.sum(1).clamp(min=1)).float()


class VADD(NoiseModel):
    """Masked diffusion whose calls draw tokens together, by a z of its own for each call."""

    Options = VADDOptions
    title = "VADD"

    def __init__(self, problem: Problem, options: VADDOptions) -> None:
        super().__init__(problem, options)
        self.recognition = Recognition(problem, options)
        self.set_stage("tokens")

    def stages(self) -> tuple[Stage, ...]:
        share = self.options.warm_share
        return (Stage("latent", share), Stage("tokens", 1.0 - share)) if share else (Stage("tokens"),)

    def set_stage(self, name: str) -> None:
        o, warm = self.options, name == "latent"
        self._full_mask: float = 1.0 if warm else o.full_mask
        self._weight: float = o.warm_weight if warm else o.kl_weight

    def recognise(self, x_BL: Tensor, masked_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """z ~ q(z | x0, x_t), (B, D), log q(z) - log p(z), (B,), and its mean, the KL of each coordinate, (B, D); nats."""
        mean_BD, log_s_BD = self.recognition(x_BL, masked_BL)
        eps_BD = self.noise(len(x_BL), generator)
        z_BD = mean_BD + log_s_BD.exp() * eps_BD
        ratio_BD = 0.5 * (z_BD.square() - eps_BD.square()) - log_s_BD
        kl_BD = 0.5 * (mean_BD.square() + (2.0 * log_s_BD).exp() - 1.0) - log_s_BD
        return z_BD, ratio_BD.sum(1), kl_BD

    def _terms(self, x_BL: Tensor, t_B: Tensor, generator: torch.Generator) -> tuple[masked.MaskedTerms, Tensor]:
        """Cross-entropies of masked tokens given z ~ q, and the KL of each coordinate (B, D)."""
        xt_BL, masked_BL = self._noisy(x_BL, t_B, generator)
        z_BD, _, kl_BD = self.recognise(x_BL, masked_BL, generator)
        nll_B = masked.masked_nll(self.network(xt_BL, masked_BL, z_BD), x_BL, masked_BL)
        return masked.MaskedTerms(nll_B, masked_BL.sum(1), self.schedule.weight(t_B)), kl_BD

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Cross-entropy and KL, nats per token."""
        t_B = stratified_times(len(x_BL), generator, self.largest_time)
        if self._full_mask:
            full_B = torch.rand(len(x_BL), generator=generator, device=t_B.device) < self._full_mask
            t_B = torch.where(full_B, 1.0, t_B)
        terms, kl_BD = self._terms(x_BL, t_B, generator)
        kl_B = kl_BD.sum(1)
        price_B = self._weight * torch.maximum(kl_B, self.options.free_nats * terms.count_B)
        total = replace(terms, nll_B=terms.nll_B + price_B).loss(self.options.loss, x_BL.shape[1])
        nats = terms.nll_B.sum() / terms.count_B.sum().clamp(min=1)
        return Loss(total, {"token_nats_per_token": nats.detach(), "latent_kl_nats": kl_B.mean().detach()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        """That of as many calls as there are tokens, with a fresh z in each."""
        t_B = stratified_times(len(x_BL), generator)
        xt_BL, masked_BL = self._noisy(x_BL, t_B, generator)
        token_R = x_BL[masked_BL]
        each = (self.network(xt_BL, masked_BL, self.noise(len(x_BL), generator)) for _ in range(self.options.draws))
        nll_MR = torch.stack([masked.token_nll(logits_RV, token_R) for logits_RV in each])
        nll_B = torch.zeros(len(x_BL), dtype=torch.float64, device=x_BL.device)
        nll_B.index_add_(0, masked_BL.nonzero()[:, 0], importance_nll(nll_MR))
        name = f"NELBO of many calls, {self.options.draws} z of the prior a token, one stratified time per sequence"
        return Bound(self.schedule.weight(t_B) * nll_B, name)

    @torch.no_grad()
    def diagnose(self, x_BL: Tensor, generator: torch.Generator) -> Mapping[str, float]:
        """Nats of KL at a few times, and where all is masked: coordinates in use, what z is worth, the bound of one call."""
        found = {}
        for t in _TIMES:
            t_B = torch.full((len(x_BL),), t, dtype=torch.float64, device=x_BL.device)
            terms, kl_BD = self._terms(x_BL, t_B, generator)
            found[f"latent_kl_nats_t{t:g}"] = float(kl_BD.sum(1).mean())
        nll = float(terms.nll_B.mean())
        all_BL = torch.ones_like(x_BL, dtype=torch.bool)
        blank_BL, z_BD = torch.full_like(x_BL, self.problem.vocab_size), self.noise(len(x_BL), generator)
        blind = float(masked.masked_nll(self.network(blank_BL, all_BL, z_BD), x_BL, all_BL).mean())
        return found | {
            "latent_coordinates_in_use": float((kl_BD.mean(0) > _USED).sum()),
            "latent_nats_saved": blind - nll,
            "one_call_bound_nats": nll + found["latent_kl_nats_t1"],
        }
