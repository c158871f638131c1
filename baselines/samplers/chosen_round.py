"""The ancestral sampler on the round of SDTT that serves a budget best, chosen on validation text.

A round is better where validation text is likelier under n-gram counts of what it draws: counts of samples that are unlike
text, or all alike, do not know the text (the perplexity "from real data" of Zhao et al. 2018, arXiv 1706.04223). A
likelihood of the round itself would not do: the mean of log p is best under the teacher, whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.ngram import NGram, NGramOptions
from baselines.samplers.ancestral import Ancestral
from baselines.sdtt import SDTT
from harness.config.fields import NoOptions
from harness.diffusion import ancestral
from harness.diffusion.ancestral import Denoiser
from harness.interface import Draw

_SEQUENCES, _SEED = 512, 20_261_128


class ChosenRound(Ancestral):
    """For each budget and temperature one of the networks that the rounds have left, the teacher among them."""

    Options = NoOptions
    methods = SDTT
    method: SDTT
    settled = True
    bounded = False  # the bound is that of the last student

    def __init__(self, method: SDTT, options: NoOptions) -> None:
        super().__init__(method, options)
        self._chosen: dict[tuple[int, float, int], int] = {}
        self._round = 0

    @property
    def title(self) -> str:
        return f"{self.method.title}, chosen round"

    def networks(self) -> Mapping[str, nn.Module]:
        return {f"round {r}": self.method.network_of(r) for r in range(self.method.options.rounds + 1)}

    @property
    def denoiser(self) -> Denoiser:
        return self.method.network_of(self._round)

    @torch.no_grad()
    def distances(self, nfe: int, temperature: float, device: torch.device) -> list[float]:
        """Nats of the validation text, per sequence, under counts of what each round draws."""
        m, found = self.method, []
        for self._round in range(m.options.rounds + 1):
            generator = torch.Generator(device=device).manual_seed(_SEED)
            counts = NGram(m.problem, NGramOptions(order=0))
            x_NL = ancestral.blank(_SEQUENCES, m.problem.length, m.problem.vocab_size, device)
            drawn = super().fill(x_NL, x_NL == m.problem.vocab_size, nfe, generator, temperature)
            counts.fit(drawn.x_NL.cpu().numpy())
            counts.settle(m.valid_NL)
            found.append(float(counts.bound(torch.from_numpy(m.valid_NL), generator).total_B.mean()))
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

    def fill(
        self, x_NL: Tensor, hidden_NL: Tensor, nfe: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Draw:
        self.prepare(nfe, temperature, generator.device)
        return super().fill(x_NL, hidden_NL, nfe, generator, temperature)

    def path_nll(self, x_BL: Tensor, nfe: int, generator: torch.Generator) -> Tensor | None:
        self.prepare(nfe, 1.0, x_BL.device)
        return super().path_nll(x_BL, nfe, generator)
