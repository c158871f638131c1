"""Methods, samplers and metrics that break one promise each, for the tests of `harness.check`."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import torch

from baselines.masked_model import MaskedModel
from baselines.mdlm import MDLM
from baselines.samplers.ancestral import Ancestral
from harness.errors import BudgetError
from harness.interface import Bound, Stage
from harness.metrics.base import Scores
from harness.metrics.entropy import Entropy


# ---- methods --------------------------------------------------------------------------------------------------------
class Untitled(MDLM):
    title = ""


class HalfTrained(MDLM):
    def stages(self):
        return (Stage("all", 0.5),)


class Unreached(MDLM):
    def __init__(self, problem, options) -> None:
        super().__init__(problem, options)
        self.spare = torch.nn.Linear(2, 2)


class GlobalChance(MDLM):
    def loss(self, x_BL, generator):
        loss = super().loss(x_BL, generator)
        return dataclasses.replace(loss, total=loss.total * (1 + torch.rand(())))


class HalfBound(MDLM):
    def bound(self, x_BL, generator):
        bound = super().bound(x_BL, generator)
        return Bound(bound.total_B.float(), bound.estimator)


class Forgetful(MDLM):
    def __init__(self, problem, options) -> None:
        super().__init__(problem, options)
        self.weight = 1 + torch.rand(()).item()

    def bound(self, x_BL, generator):
        return Bound(super().bound(x_BL, generator).total_B * self.weight, "a number that no checkpoint holds")


class Crashing(MDLM):
    def diagnose(self, x_BL, generator):
        return {"gap": [1.0][len(x_BL)]}


class Unbuilt(MDLM):
    def __init__(self, problem, options) -> None:
        raise RuntimeError("no such thing\nas two lines")


# ---- samplers -------------------------------------------------------------------------------------------------------
class OneMore(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        self.check_budget(nfe)
        return dataclasses.replace(super().draw(n, nfe + 1, generator, temperature), nfe_token=nfe)


class Masked(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        draw = super().draw(n, nfe, generator, temperature)
        return dataclasses.replace(draw, x_NL=torch.full_like(draw.x_NL, self.method.problem.vocab_size))


class Silent(Ancestral):
    def check_budget(self, nfe) -> None:
        if nfe < 1:
            raise BudgetError("no")


class Constant(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        draw = super().draw(n, nfe, generator, temperature)
        return dataclasses.replace(draw, x_NL=draw.x_NL[:1].expand(n, -1).clone())


class Dice(Ancestral):
    def draw(self, n, nfe, generator, temperature=1.0):
        return super().draw(n, nfe, torch.Generator().manual_seed(random.getrandbits(30)), temperature)


class Anything(Ancestral):
    methods = MaskedModel

    def __init__(self, method, options) -> None:
        self.method, self.options = method, options


# ---- metrics --------------------------------------------------------------------------------------------------------
class NoError(Entropy):
    def score(self, samples, context):
        return Scores({name: (value, math.nan) for name, (value, _) in super().score(samples, context).values.items()})


class Noisy(Entropy):
    def score(self, samples, context):
        shift = np.random.default_rng().random()
        return Scores({name: (v + shift, e) for name, (v, e) in super().score(samples, context).values.items()})


class Blind(Entropy):
    def score(self, samples, context):
        return Scores({column.name: (1.0, 0.1) for column in self.columns})


class Undefined(Entropy):
    definition = ""
