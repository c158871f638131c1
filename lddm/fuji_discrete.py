"""FUJI with a discrete latent: one network denoises tokens and codes in the same calls, both by masked diffusion.

LDDM's joint arm with discrete latents (Shariatian et al., arXiv 2510.18114). The codes are those of `seq_discrete`, fitted by
EM and frozen before the first step; the network is trained on token times and code times that are independent of each other,
or on a path of both, and is drawn from along any path (`lddm.paths`). A code that is drawn in the same call as its tokens
tells them nothing: in one call tokens are drawn apart, so that the codes have to be ahead.

Shapes: B batch, L tokens, V symbols, S codes out of M, N sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.ancestral import Denoiser
from harness.diffusion.schedules import stratified_times
from harness.errors import UserError
from harness.interface import Bound, Loss, Problem, Stage
from lddm.code_networks import CodeNetwork
from lddm.joint_code_network import JointCodeNetwork
from lddm.latent import token_times
from lddm.paths import TimePath, make_path
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions


@dataclass
class FUJIDiscreteOptions(SEQDiscreteOptions):
    times: str = chosen("independent", ("path", "independent"))  # both times apart, for every path, or t_c = t_x^lead
    lead: float = ranged(2.0, 0, above=True)  # code time is token time to this power: above 1 the codes are ahead
    latent_weight: float = ranged(1.0, 0, 1e6)  # of the codes' loss, beside the tokens'


class FUJIDiscrete(SEQDiscrete):
    """Joint reverse process p(x_s, c_s | x_t, c_t) along a monotone path of (t_x, t_c)."""

    Options = FUJIDiscreteOptions
    title = "FUJI, EM codes"
    encoder_title = "FUJI, encoder codes"
    options: FUJIDiscreteOptions

    def __init__(self, problem: Problem, options: FUJIDiscreteOptions) -> None:
        super().__init__(problem, options)
        del self.decoder, self.prior  # one network is both
        self.path: TimePath = make_path("lead", options.lead)
        self.network = JointCodeNetwork(problem.shape, problem.vocab_size, self.mixture.feature_MK.shape[1])

    @property
    def prior(self) -> CodeNetwork:  # type: ignore[override]
        """Refused: what draws codes by themselves is told who draws them here."""
        raise UserError(
            f"{self.title} has no network of codes alone; choose sampler joint_codes, with path=latent_first"
        )

    # ---- training -------------------------------------------------------------------------------------------------
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("joint"),)

    def set_stage(self, name: str) -> None:
        self._stage = name

    def _call(
        self, x_BL: Tensor, c_BS: Tensor, t_x_B: Tensor, t_c_B: Tensor, generator: torch.Generator
    ) -> tuple[masked.MaskedTerms, masked.MaskedTerms]:
        """Mask both channels at their times and call the network once: cross-entropies of tokens and of codes."""
        xt_BL, masked_BL = masked.mask_tokens(x_BL, self.schedule.alpha(t_x_B), self.problem.vocab_size, generator)
        ct_BS, masked_BS = masked.mask_tokens(c_BS, self.schedule.alpha(t_c_B), self.options.codes, generator)
        tokens, codes = self.network(xt_BL, ct_BS, self.mixture, masked_BL, masked_BS)
        nll_x_B, nll_c_B = masked.masked_nll(tokens, x_BL, masked_BL), masked.masked_nll(codes, c_BS, masked_BS)
        return (
            masked.MaskedTerms(nll_x_B, masked_BL.sum(1), self.schedule.weight(t_x_B)),
            masked.MaskedTerms(nll_c_B, masked_BS.sum(1), self.schedule.weight(t_c_B)),
        )

    def _token_terms(self, x_BL: Tensor, c_BS: Tensor, t_B: Tensor, generator: torch.Generator) -> masked.MaskedTerms:
        return self._call(x_BL, c_BS, t_B, torch.zeros_like(t_B), generator)[0]

    def _code_terms(self, c_BS: Tensor, t_B: Tensor, generator: torch.Generator) -> masked.MaskedTerms:
        blank_BL = c_BS.new_zeros((len(c_BS), self.problem.length))
        return self._call(blank_BL, c_BS, torch.ones_like(t_B), t_B, generator)[1]

    def _times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (t_x, t_c) to train on, (B,) each."""
        if self.options.times == "path":
            t_x_B = stratified_times(count, generator, self.largest_time)
            return t_x_B, self.path.latent_time(t_x_B)
        t_x_B = token_times(count, self.options.full_mask, generator, self.largest_time)
        # Both are stratified in the order of the batch: unshuffled, they would move together.
        shuffled_B = torch.randperm(count, generator=generator, device=t_x_B.device)
        return t_x_B, stratified_times(count, generator)[shuffled_B]

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        """Tokens, nats per token, and codes, nats per code."""
        o = self.options
        c_BS, _ = self.encode(x_BL, generator)
        self.bank.put(c_BS)
        tokens, codes = self._call(x_BL, c_BS, *self._times(len(x_BL), generator), generator)
        parts = {
            name: (terms.nll_B.sum() / terms.count_B.sum().clamp(min=1)).detach()
            for name, terms in {"token_nats_per_token": tokens, "code_nats_per_code": codes}.items()
        }
        return Loss(tokens.loss(o.loss, x_BL.shape[1]) + o.latent_weight * codes.loss(o.loss, o.slots), parts)

    # ---- tokens given codes ---------------------------------------------------------------------------------------
    def token_network(self) -> nn.Module:
        return self.network

    def denoiser(self, latent: Tensor) -> Denoiser:
        none_NS = torch.zeros_like(latent, dtype=torch.bool)
        return lambda x_NL, select_NL, t_N: self.network(x_NL, latent, self.mixture, select_NL, none_NS)[0]

    def check_encoded(self) -> None:
        if self.options.times == "path":
            raise UserError(
                "sampler encoder puts clean codes beside masked tokens, which times=path never trains; "
                "choose times=independent"
            )

    # ---- likelihood -----------------------------------------------------------------------------------------------
    def bound(self, x_BL: Tensor, generator: torch.Generator, path: TimePath | None = None) -> Bound:
        """E_q[log q(c | x) - log p(c, x)] along a path (t_c = t_x^lead, unless told): a time and a call for each integral."""
        path = path or self.path
        c_BS, log_q_B = self.encode(x_BL, generator)
        t_x_B, t_c_B = (stratified_times(len(x_BL), generator) for _ in range(2))
        tokens, _ = self._call(x_BL, c_BS, t_x_B, path.latent_time(t_x_B), generator)
        _, codes = self._call(x_BL, c_BS, path.token_time(t_c_B), t_c_B, generator)
        parts = {"encoder": log_q_B, "latent": codes.nelbo_B.double(), "tokens": tokens.nelbo_B.double()}
        return Bound.of_parts(parts, "NELBO with the codes' terms, one code and one time per channel")
