"""A study that can be searched in seconds: a method with options of training and of sampling alone, and its spaces."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from harness.errors import BudgetError, UserError
from harness.interface import Draw
from tests.kit.study_plugins import YAML, Independent, Positions, PositionsOptions


@dataclass
class TunableOptions(PositionsOptions):
    spread: float = 1.0  # of the weights at the start
    rounds: int = 1


class Tunable(Positions):
    """`spread` multiplies the weights before training."""

    Options = TunableOptions
    title = "Tunable"

    def __init__(self, problem, options: TunableOptions) -> None:
        super().__init__(problem, options)
        with torch.no_grad():
            self.table.weight.mul_(options.spread)


@dataclass
class TunedOptions:
    path: str = "straight"
    bend: float = 0.5
    corners: list[float] = field(default_factory=list)
    heat: float = 1.0


class Tuned(Independent):
    """`heat` divides the logits."""

    Options = TunedOptions

    def __init__(self, method: Positions, options: TunedOptions) -> None:
        super().__init__(method, options)
        if options.path not in ("straight", "bent"):
            raise UserError(f"path='{options.path}' is unknown; choose straight or bent")
        if not 0 < options.heat <= 100:
            raise UserError(f"heat={options.heat} is out of range; choose 0 to 100")

    def check_budget(self, nfe: int) -> None:
        super().check_budget(nfe)
        if nfe < 2 and self.options.path == "bent":
            raise BudgetError(f"nfe={nfe} cannot be met by {self.title}: a bend takes a call; use 2 or more")

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        return super().draw(n, nfe, generator, temperature * self.options.heat)


class Boundless(Tunable):
    """Has no bound."""

    title = "Boundless"

    def bound(self, x_BL: torch.Tensor, generator: torch.Generator) -> None:
        return None


FILES = {
    "study/tunable": YAML["study/toy"]
    .replace("name: toy", "name: tunable")
    .replace(
        "  - /metric@metrics.gen_ppl",
        "  - /method@methods.tunable: tunable\n  - /method@methods.twin: tunable\n"
        "  - /method@methods.boundless: boundless\n  - /metric@metrics.gen_ppl",
    )
    + "methods:\n  twin: {spread: '${methods.tunable.spread}', samplers: {tuned: {heat: 1.5}}}\n",
    "method/tunable": "# Can be searched\n_target_: tests.kit.tune_toys.Tunable\nsamplers: {tuned: {}, independent: {}}\n",
    "method/boundless": "# Has no bound\n_target_: tests.kit.tune_toys.Boundless\nsamplers: {tuned: {}}\n",
    "sampler/tuned": "# With options\n_target_: tests.kit.tune_toys.Tuned\n",
    "tune/toy": """\
# A space of all kinds
candidates: [nowhere, tunable/nowhere, tunable/tuned]
space:
  "{method}.spread": {low: 0.1, high: 10, log: true}
  "{method}.rounds": {low: 1, high: 9, step: 2}
  "{sampler}.path": {choices: [straight, bent]}
  "{sampler}.bend": {low: 0, high: 1, when: {"{sampler}.path": [bent]}}
  "{method}.missing": {low: 0, high: 1, optional: true}
  "{sampler}.corners": {choices: [[], [0.5, 0.25]]}
objectives:
  quality: {nfe: 2}
constraints:
  repeats: {column: repeats, nfe: 4, within: 0.9}
  entropy: {column: entropy, nfe: 4, within: 0.1, optional: true}
samples: 16
base: [train.validations=3]
trials: 4
""",
    "tune/heat": """\
# Only how it samples
candidates: [tunable]
space:
  "{sampler}.heat": {low: 0.5, high: 2.0, log: true}
  study.temperatures: {kind: float, low: 0.5, high: 1.5}
objectives:
  quality: {nfe: 2}
samples: 16
""",
}


def write_files(root: Path) -> Path:
    """The folder for `--config-dir`."""
    for name, text in (YAML | FILES).items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "configs"


def arguments(root: Path, *more: str) -> list[str]:
    """The study, its files below `root`."""
    return ["study=tunable", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}", *more]
