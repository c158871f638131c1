"""What SEQ with noisy embeddings can be told, and which of it goes together."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.fields import chosen, ranged
from harness.diffusion import masked
from harness.diffusion.schedules import TOKEN_SCHEDULES
from harness.errors import UserError
from harness.interface import Problem


@dataclass
class SEQEmbeddedOptions:
    schedule: str = chosen("linear", TOKEN_SCHEDULES)  # of the tokens
    loss: str = chosen("masked_mean", masked.LOSSES)  # of the tokens; see harness.diffusion.masked.MaskedTerms
    dims: int = ranged(8, 1, 4096)  # of a token's embedding
    start: float = ranged(0.65, 0, 1)  # time of the latent that the law draws; 1: pure noise, the networks do all
    end: float = ranged(0.3, 0.01, 1)  # time of the latent that the tokens are given: what share it hides of them
    patch: int = ranged(4, 1, 4096)  # neighbouring tokens that are one slot of the latent's network
    law: str = chosen("mixture", ("mixture", "chain"))  # of segments apart, or n-grams of whole sequences
    order: int = ranged(3, 2, 64)  # n of the chain's n-grams
    joint: bool = False  # networks learn how likely the tokens of a call are together under the chain, not one by one
    segment: int = ranged(8, 1, 4096)  # tokens of the mixture's segments
    codes: int = ranged(4096, 1, 1 << 20)  # components of the mixture; 1: the places' own laws, and no dependence
    em_steps: int = ranged(4, 1, 1000)
    em_segments: int = ranged(262144, 1, 1 << 30)  # at most so many, chosen at random in the training budget
    smoothing: float = ranged(0.16, 1e-6, 1e6)  # segments of the marginal law that each component is given
    full_mask: float = ranged(0.3, 0, 1)  # share of a batch with every token masked, where few calls start
    latent_jitter: float = ranged(0.4, 0, 1)  # half of the decoder's latents are later than `end`, by up to this much
    prior_share: float = ranged(0.4, 0, 0.99)  # of the steps, after the tokens
    prior_depth: int = ranged(4, 1, 96)
    prior_width: int = ranged(0, 0, 65536)  # 0: the backbone's
    latent_batch: int = ranged(64, 2, 1 << 20)  # sequences in a step of the prior, from a bank
    bank: int = ranged(65536, 2, 1 << 24)


def check(o: SEQEmbeddedOptions, problem: Problem) -> None:
    """Raise `UserError` for options that do not go together or with the problem."""
    divisors = [d for d in range(1, problem.length + 1) if problem.length % d == 0]
    for key in ("patch", "segment"):
        value = getattr(o, key)
        if value not in divisors:
            near = min(divisors, key=lambda d: abs(d - value))
            raise UserError(f"{key}={value} does not divide sequences of {problem.length} tokens; choose {near}")
    if o.joint and o.law != "chain":
        raise UserError(f"joint=true needs n-grams that tie tokens together, and law={o.law} has none; use law=chain")
    if o.start < o.end:
        raise UserError(f"start={o.start} is below end={o.end}, and the chain runs down; choose start={o.end} or above")
