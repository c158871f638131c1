"""What somebody may add to the harness, each one class: a method, a sampler, data, a judge, a metric; and some that go wrong.

Nothing in the harness knows of this file: the tests name its classes in YAML files of a folder of their own.

Shapes: B batch, L tokens, V symbols, N sequences.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import harness.store
from harness.data.base import DataSource, TokenData
from harness.diffusion.masked import draw_tokens
from harness.interface import Bound, Draw, Loss, Method, Problem, Sampler
from harness.judges.base import Judge, TextScores
from harness.metrics.base import Column, Metric, Samples, ScoreContext, Scores

_SYMBOLS = "abcde"


@dataclass
class PositionsOptions:
    poison_from: int = -1  # step from which the loss is not a number; -1: never


class Positions(Method):
    """Independent tokens with a law for each position; the first calls of a budget are looked at and forgotten."""

    Options = PositionsOptions
    title = "Positions"

    def __init__(self, problem: Problem, options: PositionsOptions) -> None:
        super().__init__(problem, options)
        self.table = nn.Embedding(problem.length, problem.vocab_size)
        self.steps = 0

    def logits(self, n: int) -> Tensor:
        positions_L = torch.arange(self.problem.length, device=self.table.weight.device)
        return self.table(positions_L.expand(n, -1))

    def _nll(self, x_BL: Tensor) -> Tensor:
        logp_BLV = self.logits(len(x_BL)).log_softmax(-1)
        return -logp_BLV.gather(-1, x_BL[..., None])[..., 0].sum(1)

    def loss(self, x_BL: Tensor, generator: torch.Generator) -> Loss:
        total = self._nll(x_BL).mean() / x_BL.shape[1]
        self.steps += 1
        if 0 <= self.options.poison_from < self.steps:
            total = total * torch.nan
        return Loss(total, {"nll": total.detach()})

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        return Bound(self._nll(x_BL).double(), "exact log-likelihood", exact=True)


@dataclass
class IndependentOptions:
    pass


class Independent(Sampler):
    """Draws each position by itself."""

    Options = IndependentOptions
    methods = Positions
    method: Positions

    def networks(self) -> Mapping[str, nn.Module]:
        return {"token": self.method.table}

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        for _ in range(nfe):
            logits_NLV = self.method.logits(n)
        x_T, dtype = draw_tokens(logits_NLV.flatten(0, 1), generator, temperature)
        return Draw(x_T.view(n, -1), nfe_latent=0, nfe_token=nfe, draw_dtype=dtype)


class Liar(Independent):
    """Says that it kept to its budget and calls its network once more."""

    @property
    def title(self) -> str:
        return "Liar"

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.method.logits(n)
        return super().draw(n, nfe, generator, temperature)


class FullDisk(Positions):
    """The disk fills up while it trains: from then on nothing can be written."""

    title = "Full disk"

    def calibrate(self, x_NL: Tensor) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        harness.store.os = _Replaced(full)


class _Replaced:
    """The module `os` with another `fsync`."""

    def __init__(self, fsync) -> None:
        self.fsync = fsync

    def __getattr__(self, name: str):
        return getattr(os, name)


@dataclass
class AlternatingOptions:
    rows: int = 400
    noise: float = 0.1


class Alternating(DataSource):
    """abcabc... with some letters replaced: token ids without any text behind them."""

    Options = AlternatingOptions

    def load(self, length: int, cache, tokenizer) -> TokenData:
        rng = np.random.default_rng(5)
        x_NL = (np.arange(length)[None] + rng.integers(3, size=(self.options.rows, 1))) % 3
        replace_NL = rng.random(x_NL.shape) < self.options.noise
        x_NL = np.where(replace_NL, rng.integers(len(_SYMBOLS), size=x_NL.shape), x_NL).astype(np.uint16)
        a, b = self.options.rows // 2, 3 * self.options.rows // 4
        splits = {"train": x_NL[:a], "valid": x_NL[a:b], "test": x_NL[b:]}
        name = f"alternating-{self.options.rows}-{self.options.noise}-{length}"
        return TokenData("alternating", len(_SYMBOLS), length, splits, name, _decode, {"rows": self.options.rows})


def _decode(ids) -> str:
    return "".join(_SYMBOLS[int(i)] for i in ids)


@dataclass
class LetterJudgeOptions:
    smoothing: float = 1.0


class LetterJudge(Judge):
    """Bigram counts of the training text; needs no library and no time."""

    Options = LetterJudgeOptions

    def prepare(self, data: TokenData, cache, device: str, progress) -> None:
        progress("judge: counts letters")
        count = np.full((128, 128), self.options.smoothing)
        for row in np.asarray(data.splits["train"]):
            ids = np.frombuffer(data.decode(row.tolist()).encode("ascii"), dtype=np.uint8)
            np.add.at(count, (ids[:-1], ids[1:]), 1.0)
        self._logp = np.log(count / count.sum(1, keepdims=True))
        self._held_out = [data.decode(row.tolist()) for row in np.asarray(data.splits["test"])]

    @property
    def identity(self) -> str:
        return f"letters-{self.options.smoothing}"

    @property
    def heldout_ppl(self) -> float:
        scores = self.score(self._held_out)
        return float(np.exp(scores.nll_N.sum() / scores.tokens_N.sum()))

    def score(self, texts) -> TextScores:
        ids = [np.frombuffer(text.encode("ascii"), dtype=np.uint8) for text in texts]
        nll_N = np.array([-self._logp[i[:-1], i[1:]].sum() for i in ids])
        return TextScores(nll_N, np.array([max(len(i) - 1, 0) for i in ids]))

    def features(self, texts) -> np.ndarray:
        return np.array([[text.count(s) for s in _SYMBOLS] for text in texts], dtype=np.float32)


@dataclass
class RepeatsOptions:
    distance: int = 3


class Repeats(Metric):
    """Share of tokens that are the same as the one `distance` before them."""

    Options = RepeatsOptions
    definition = "share of tokens equal to the one three before"
    columns = (Column("repeats", "Repeats", "share", "data"),)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        d = self.options.distance
        share_N = (samples.x_NL[:, d:] == samples.x_NL[:, :-d]).mean(1)
        return Scores({"repeats": (float(share_N.mean()), float(share_N.std(ddof=1) / len(share_N) ** 0.5))})


class BrokenMetric(Repeats):
    """Fails on generated text, not on data."""

    columns = (Column("broken", "Broken", "share", "data"),)

    def score(self, samples: Samples, context: ScoreContext) -> Scores:
        held_out = {row.tobytes() for split in ("valid", "test") for row in context.data.splits[split].astype(np.int64)}
        if all(row.tobytes() in held_out for row in samples.x_NL.astype(np.int64)):
            return Scores({"broken": (0.0, 0.0)})
        raise ArithmeticError("no logarithm of nothing")


YAML = {
    "study/toy": """\
# @package _global_
# A study whose data, judge, methods and metric are all somebody's own.
defaults:
  - /data: alternating
  - /tokenizer: characters
  - /scale: nano
  - /judge: letters
  - /method@methods.positions: positions
  - /metric@metrics.gen_ppl: gen_ppl
  - /metric@metrics.repeats: repeats
study: {name: toy, nfe: [2, 4], samples: 16, bound_sequences: 32, bound_draws: 1}
scale: {width: 8, depth: 1, heads: 1, length: 12, steps: 30, batch: 8, lr: 0.1}
train: {validations: 3}
compute: {device: cpu, precision: float32, workers: 1, compile: "false"}
tracking: {enabled: false}
""",
    "method/positions": "# A law for each position\n_target_: tests.kit.study_plugins.Positions\nsamplers: {independent: {}}\n",
    "method/full_disk": "_target_: tests.kit.study_plugins.FullDisk\nsamplers: {independent: {}}\n",
    "sampler/independent": "# Each position by itself\n_target_: tests.kit.study_plugins.Independent\n",
    "sampler/liar": "# One call too many\n_target_: tests.kit.study_plugins.Liar\n",
    "data/alternating": "# Letters in turn\n_target_: tests.kit.study_plugins.Alternating\nnoise: 0.2\n",
    "judge/letters": "# Bigram counts\n_target_: tests.kit.study_plugins.LetterJudge\n",
    "metric/repeats": "# Repeated tokens\n_target_: tests.kit.study_plugins.Repeats\n",
    "metric/broken": "_target_: tests.kit.study_plugins.BrokenMetric\n",
}


def write_configs(folder) -> list[str]:
    """Write the YAML files into `folder` and return the options that make the command line read them."""
    for name, text in YAML.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return ["--config-dir", str(folder), "study=toy"]
