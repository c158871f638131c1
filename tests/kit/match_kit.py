"""Methods whose training costs differ, one that fits something first, and the toy study that has them all."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.interface import Stage
from harness.nn.networks import TokenNetwork
from tests.kit.study_plugins import YAML
from tests.kit.study_plugins import write_configs as write_toys

STEPS, BATCH, LENGTH = 60, 8, 12
EVENTS: list[str] = []  # what happened to objects of the classes below, in order
FITTED: list[np.ndarray] = []


@dataclass
class FittedOptions(MDLMOptions):
    products: int = 12  # of matrices of 64 x 64, while it fits


class Fitted(MDLM):
    """Its bias are the logarithms of counts; the copy that is counted has them as well."""

    Options = FittedOptions

    def __init__(self, problem, options: FittedOptions) -> None:
        super().__init__(problem, options)
        self.register_buffer("count_V", torch.zeros(problem.vocab_size))

    def fit(self, train_NL: np.ndarray) -> None:
        EVENTS.append("fit")
        FITTED.append(train_NL)
        self.count_V.copy_(torch.from_numpy(np.bincount(train_NL.ravel(), minlength=len(self.count_V))))
        for _ in range(self.options.products):
            torch.ones(64, 64) @ torch.ones(64, 64)

    def loss(self, x_BL, generator):
        EVENTS.append("loss")
        assert self.count_V.sum() > 0
        made = super().loss(x_BL, generator)
        made.total = made.total * self.count_V.log().mean()  # other counts, other gradients
        return made


class Staged(MDLM):
    """A quarter of its steps train a second network beside the first, the others the second alone."""

    def __init__(self, problem, options) -> None:
        super().__init__(problem, options)
        self.other = TokenNetwork(dataclasses.replace(problem.shape, depth=3), problem.vocab_size)

    def stages(self) -> tuple[Stage, ...]:
        return Stage("both", 0.25), Stage("other", 0.75)

    def set_stage(self, name: str) -> None:
        self._both = name == "both"
        self.network.requires_grad_(self._both)

    def loss(self, x_BL, generator):
        made = super().loss(x_BL, generator)
        made.total = made.total * float(self._both) + self.other(x_BL).whole().logsumexp(-1).mean()
        return made


def write_files(folder: Path) -> Path:
    """The toy study with methods whose steps differ in cost; the folder for `--config-dir`."""
    more = "".join(f"  - /method@methods.{name}: {name}\n" for name in ("mdlm", "wide", "staged", "fitted"))
    write_toys(folder)
    text = YAML["study/toy"].replace("  - /metric@metrics.gen_ppl", f"{more}  - /metric@metrics.gen_ppl")
    text = text.replace("steps: 30", f"steps: {STEPS}").replace("lr: 0.1", "lr: 0.01")
    files = {
        "study/match": text.replace("name: toy", "name: match"),
        "method/wide": "_target_: baselines.mdlm.MDLM\nwidth_factor: 3\nsamplers: {ancestral: {}}\n",
        "method/staged": "_target_: tests.kit.match_kit.Staged\nsamplers: {ancestral: {}}\n",
        "method/fitted": "_target_: tests.kit.match_kit.Fitted\nsamplers: {ancestral: {}}\n",
        "tune/width": "# How wide\ncandidates: [mdlm]\nspace:\n  '{method}.width_factor': {low: 1, high: 4}\n"
        "objectives:\n  quality: {nfe: 2}\nsamples: 16\n",
    }
    for name, content in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder
