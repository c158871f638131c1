"""Draws with the round of a distillation that serves a budget best, chosen on validation text.

A round is better where validation text is likelier under n-gram counts of what it draws: counts of samples that are unlike
text, or all alike, do not know the text (the perplexity "from real data" of Zhao et al. 2018, arXiv 1706.04223). A
likelihood of the round itself would not do: the mean of log p is best under the teacher, whatever is drawn.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from harness.diffusion.rounds import Rounds
from harness.interface import Draw, Sampler
from harness.nn.ngrams import NGramCounts

_SEQUENCES, _SEED = 512, 20_261_128


class ChoosesRound(Sampler):
    """Before the sampler of one network, among the bases of a class that draws with the network of `self._round`.

    For each budget and temperature one of the networks that the rounds have left, the teacher among them.
    """

    settled = True
    bounded = False  # the bound is that of the last student
    method: Rounds

    def __init__(self, method: Any, options: Any) -> None:
        super().__init__(method, options)
        self._chosen: dict[tuple[int, float, int], int] = {}
        self._round = 0

    @property
    def title(self) -> str:
        return f"{self.method.title}, chosen round"

    @abstractmethod
    def draw_with_round(self, n: int, nfe: int, generator: torch.Generator, temperature: float) -> Draw:
        """As `draw`, with the round that is set."""

    @torch.no_grad()
    def distances(self, nfe: int, temperature: float, device: torch.device) -> list[float]:
        """Nats of the validation text, per sequence, under counts of what each round draws."""
        m, found = self.method, []
        for self._round in range(m.options.rounds + 1):
            generator = torch.Generator(device=device).manual_seed(_SEED)
            counts = NGramCounts(m.problem.vocab_size)
            counts.count(self.draw_with_round(_SEQUENCES, nfe, generator, temperature).x_NL.cpu().numpy())
            counts.choose(m.valid_NL)
            found.append(float(counts.nll(m.valid_NL).mean()))
        return found

    def prepare(self, nfe: int, temperature: float, device: torch.device) -> None:
        self.check_budget(nfe)
        if not len(self.method.valid_NL):  # before `settle`, as where costs alone are counted: the last student
            self._round = self.method.options.rounds
            return
        # Weights that are changed in place have other versions.
        key = nfe, temperature, sum(value._version for value in self.method.state_dict(keep_vars=True).values())
        if key not in self._chosen:
            nats = self.distances(nfe, temperature, device)
            self._chosen[key] = nats.index(min(nats))
        self._round = self._chosen[key]

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.prepare(nfe, temperature, generator.device)
        return self.draw_with_round(n, nfe, generator, temperature)

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        self.prepare(nfe, temperature, generator.device)
        return super().fill(x_NL, hidden_NL, nfe, generator, temperature)
