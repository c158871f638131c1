"""Counted models: unigram and n-gram with Witten-Bell back-off. Every table has them, since they game perplexity cheaply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.config.fields import ranged
from harness.errors import UserError
from harness.interface import Bound, Method, Problem, Stage
from harness.nn.ngrams import NGramCounts, longest


@dataclass
class NGramOptions:
    order: int = ranged(3, 1, also=(0,))  # tokens of a window; 0: of 2 to 6 what validation text is likeliest under


class NGram(NGramCounts, Method):
    """Unigram (`order=1`) or n-gram model of packed text; windows start anywhere, so short histories start a sequence."""

    Options = NGramOptions
    role = "reference"

    def __init__(self, problem: Problem, options: NGramOptions) -> None:
        Method.__init__(self, problem, options)
        limit = longest(problem.vocab_size)
        if options.order > limit:
            raise UserError(
                f"n-gram order={options.order} does not fit a vocabulary of {problem.vocab_size}; choose 1 to {limit}"
            )
        NGramCounts.__init__(self, problem.vocab_size, options.order)
        names = {0: "Best n-gram", 1: "Unigram", 2: "Bigram", 3: "Trigram"}
        self.title = names.get(options.order, f"{options.order}-gram")

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def fit(self, train_NL: np.ndarray) -> None:
        self.count(train_NL)

    def settle(self, valid_NL: np.ndarray) -> None:
        self.choose(valid_NL)

    def bound(self, x_BL: Tensor, generator: torch.Generator) -> Bound:
        nll_B = self.nll(x_BL.cpu().numpy().astype(np.int64))
        return Bound(torch.from_numpy(nll_B), f"exact log-likelihood by the chain rule, order {self.order}", exact=True)
