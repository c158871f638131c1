"""Templates: a hidden class chooses a sequence, and each token follows it or strays, independently of the others.

Shapes: N sequences, L tokens, V symbols, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.tasks.mixture import MixtureOfProducts
from harness.tasks.source import LARGEST_VOCABULARY, TaskSource, TaskSourceOptions

MOST_CLASSES = 4096


class Templates(MixtureOfProducts):
    """Uniform classes; a token is its template's symbol with probability `accuracy`, else uniform over the others.

    `template_CL` is drawn from `task_seed` alone, so that the task is the same whatever the seed of the data.
    """

    name = "templates"

    def __init__(
        self, length: int = 32, classes: int = 16, symbols: int = 8, accuracy: float = 0.9, task_seed: int = 0
    ) -> None:
        self.accuracy = accuracy
        self.template_CL = np.random.default_rng(task_seed).integers(symbols, size=(classes, length))
        hot_CLV = torch.eye(symbols, dtype=torch.float64)[torch.from_numpy(self.template_CL)]
        p_CLV = hot_CLV * accuracy + (1 - hot_CLV) * ((1 - accuracy) / (symbols - 1))
        super().__init__(torch.full((classes,), 1 / classes, dtype=torch.float64), p_CLV)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        x_NL = self.template_CL[rng.integers(len(self.template_CL), size=n)]
        stray_NL = rng.random(x_NL.shape) >= self.accuracy
        return (x_NL + stray_NL * rng.integers(1, self.vocab_size, size=x_NL.shape)) % self.vocab_size

    def statistics(self, x_NL: Tensor) -> Tensor:
        """Posterior over the classes; where x is impossible, the prior."""
        return self.posterior(x_NL)


@dataclass
class TemplatesOptions(TaskSourceOptions):
    """See `Templates`."""

    classes: int = ranged(16, 1, MOST_CLASSES)
    symbols: int = ranged(8, 2, LARGEST_VOCABULARY)
    accuracy: float = ranged(0.9, 0, 1)  # probability of the template's symbol
    task_seed: int = ranged(0, 0)  # of the templates


class TemplatesData(TaskSource):
    """Sequences of `scale.length` noisy copies of one template."""

    Options = TemplatesOptions

    def task(self, length: int) -> Templates:
        o = self.options
        return Templates(length, o.classes, o.symbols, o.accuracy, o.task_seed)
