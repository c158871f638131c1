"""Samplers that break their contract are caught, and options that cannot be meant are refused in one line."""

import dataclasses
import math

import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.ancestral import Ancestral
from harness.config.fields import NoOptions
from harness.config.registry import build_options
from harness.errors import UserError
from harness.study.cells import Part
from harness.study.sampling import SamplerError, checked_draw
from tests.kit.toys import generator_of, one_thread, tiny_problem  # noqa: F401

PROBLEM = tiny_problem()


def draw(cls: type[Ancestral], nfe: int):
    sampler = cls(MDLM(PROBLEM, MDLMOptions()).eval(), NoOptions())
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


METHODS = {"fuji": "lddm.fuji.FUJI", "seq": "lddm.seq.SEQ"}
SAMPLERS = {"path": "lddm.samplers.path.AlongPath", "diffusion": "lddm.samplers.diffusion.Diffusion"}
LATENT_REFUSALS = [
    ({"encoder_noise": 0.0}, "encoder_noise=0.0: must be above 0"),
    ({"slots": 0}, "slots=0: must be between 1 and 4096"),
    ({"prediction": "x1"}, "did you mean 'x0'"),
    ({"time": "adain"}, "did you mean 'adaln'"),
    ({"latent_shift": 0.0}, "latent_shift=0.0: must be above 0"),
    ({"latent_shift": -1.0}, "latent_shift=-1.0: must be above 0"),
    ({"latent_shift": math.nan}, "latent_shift=nan: must be finite, and above 0"),
    ({"schedule": "lin"}, "did you mean 'linear'"),
    ({"loss": "nelbow"}, "did you mean 'nelbo'"),
    ({"encoder_dtype": "float23"}, "did you mean 'float32'"),
]
OTHER_REFUSALS = [
    (METHODS["fuji"], {"encoder_share": 1.0}, "encoder_share=1.0: must be above 0 and below 1"),
    (METHODS["fuji"], {"bank": 1}, "the nearest is 2"),
    (METHODS["fuji"], {"times": "pat"}, "did you mean 'path'"),
    (METHODS["seq"], {"stages": 3}, "the nearest is 2"),
    ("lddm.seq_discrete.SEQDiscrete", {"codes": 1}, "the nearest is 2"),
    ("baselines.mdlm.MDLM", {"width_factor": 17.0}, "the nearest is 16"),
    ("baselines.ngram.NGram", {"order": -1}, "the nearest is 1"),
    (SAMPLERS["path"], {"path": "ofset"}, "did you mean 'offset'"),
    (SAMPLERS["path"], {"lead": 0.0}, "lead=0.0: must be above 0"),
    (SAMPLERS["path"], {"lead": math.nan}, "lead=nan: must be finite, and above 0"),
    (SAMPLERS["path"], {"offset": 1.0}, "offset=1.0: must be at least 0 and below 1"),
    (SAMPLERS["path"], {"latent_share": -0.1}, "latent_share=-0.1: must be between 0 and 1"),
    (SAMPLERS["path"], {"eta": 1.5}, "eta=1.5: must be between 0 and 1"),
    (SAMPLERS["diffusion"], {"latent_share": 2.0}, "latent_share=2.0: must be between 0 and 1"),
    ("baselines.samplers.top_p.TopP", {"p": 0.0}, "p=0.0: must be above 0 and at most 1"),
    ("baselines.samplers.confidence.Confidence", {"noise": -1.0}, "noise=-1.0: must be 0 or more"),
]


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [*((target, *case) for target in METHODS.values() for case in LATENT_REFUSALS), *OTHER_REFUSALS],
)
def test_impossible_options_are_refused_in_one_line(target, options, words):
    with pytest.raises(UserError, match=words) as caught:
        build_options({"_target_": target, **options}, "methods.x")
    assert str(caught.value).startswith("methods.x.") and "\n" not in str(caught.value)
