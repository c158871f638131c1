"""Samplers that break their contract are caught, and options that cannot be meant are refused in one line."""

import dataclasses

import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.ancestral import Ancestral, AncestralOptions
from harness.errors import UserError
from harness.study.cells import Part
from harness.study.sampling import SamplerError, checked_draw
from lddm.fuji import FUJI
from lddm.seq import SEQ
from tests.toys import generator_of, one_thread, tiny_problem  # noqa: F401

PROBLEM = tiny_problem()


def draw(cls: type[Ancestral], nfe: int):
    sampler = cls(MDLM(PROBLEM, MDLMOptions()).eval(), AncestralOptions())
    with torch.inference_mode():
        return checked_draw(sampler, 12, Part(nfe, 1.0), generator_of(0))


class CleansUp(Ancestral):
    """One more call than it reports, as published samplers make to remove the last masks."""

    def draw(self, n, nfe, generator, temperature=1.0):
        drawn = super().draw(n, nfe, generator, temperature)
        self.method.network(drawn.x_NL)
        return drawn


class SpendsMore(Ancestral):
    """Reports what it spends, which is not what was asked."""

    def draw(self, n, nfe, generator, temperature=1.0):
        return super().draw(n, nfe + 1, generator, temperature)


class CountsLess(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        return dataclasses.replace(super().draw(n, nfe + 1, generator, temperature), nfe_token=nfe)


class LeavesMask(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        drawn = super().draw(n, nfe, generator, temperature)
        drawn.x_NL[0, -1] = self.method.problem.vocab_size
        return drawn


class TooShort(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        drawn = super().draw(n, nfe, generator, temperature)
        return dataclasses.replace(drawn, x_NL=drawn.x_NL[:, :-1])


class SinglePrecision(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        return dataclasses.replace(super().draw(n, nfe, generator, temperature), draw_dtype="float32")


@pytest.mark.parametrize("liar", [CleansUp, SpendsMore, CountsLess, LeavesMask, TooShort, SinglePrecision])
def test_a_sampler_that_breaks_its_contract_is_caught(liar):
    draw(Ancestral, 3)
    with pytest.raises(SamplerError):
        draw(liar, 3)


CLASSES = {"fuji": FUJI, "seq": SEQ}
LATENT_REFUSALS = [
    ({"encoder_noise": 0.0}, "no bound"),
    ({"slots": 0}, "slots=0 is out of range"),
    ({"prediction": "x1"}, "did you mean 'x0'"),
    ({"time": "adain"}, "did you mean 'adaln'"),
    ({"latent_shift": 0.0}, "must be positive"),
    ({"schedule": "lin"}, "did you mean 'linear'"),
    ({"loss": "nelbow"}, "did you mean 'nelbo'"),
]


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize(("options", "words"), LATENT_REFUSALS)
def test_impossible_options_are_refused_in_one_line(name, options, words):
    cls = CLASSES[name]
    with pytest.raises(UserError, match=words) as caught:
        cls(PROBLEM, cls.Options(**options))
    assert "\n" not in str(caught.value)
