"""Samplers that reveal as much in a call as looks safe: the number of calls differs by sequence.

How much is safe is one number, the dial. A budget of K calls is a budget of their mean: the dial is found once for each K and
temperature by bisection on a draw of sequences of its own, so that their mean, with two standard errors, is at most K. A
draw of N sequences never takes more than N K calls: where they run out, the sequences with the fewest masks are finished at
once. The network is called on those sequences alone that are not done, at the time at which as many tokens are masked.

Shapes: N sequences, A of them not done, L tokens, V symbols, M masked positions of the A in row-major order, R of them in a
slice, F features of a prediction.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from baselines.masked_model import MaskedModel
from harness.diffusion import masked
from harness.errors import BudgetError
from harness.interface import Draw, Sampler
from harness.nn.slices import Logits

_SEQUENCES, _HALVINGS, _SEED = 64, 14, 20_261_128


class Adaptive(Sampler):
    """K calls a sequence in the mean, between `least` and L."""

    methods = MaskedModel
    method: MaskedModel
    bounded = False
    adaptive = True
    #: Dials of one token a call, and of all in as few calls as there can be.
    dials: tuple[float, float]

    def __init__(self, method: MaskedModel, options: Any) -> None:
        super().__init__(method, options)
        self._key: tuple[int, float, int] | None = None  # what the dial was found for
        self._dial = 0.0

    @property
    def least(self) -> int:
        """The fewest calls of a sequence."""
        return 1

    @abstractmethod
    def features(self, log_p_RV: Tensor) -> Tensor:
        """What the choice needs to know of predictions (float64), (R, F)."""

    @abstractmethod
    def choose(
        self, feature_MF: Tensor, hidden_AL: Tensor, dial: float, kept: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What to reveal, (A, L) bool, at least one position of each sequence; and what to keep of each for its next call.

        `feature_MF` are those of the masked positions `hidden_AL`; `kept` is what the last call gave, with the rows of the
        sequences that are left (None at first).
        """

    def networks(self) -> Mapping[str, nn.Module]:
        return self.method.networks()

    def check_budget(self, nfe: int) -> None:
        length = self.method.problem.length
        if not self.least <= nfe <= length:
            why = f"a sequence of {length} tokens takes {self.least} to {length} calls"
            raise BudgetError(
                f"nfe={nfe} cannot be met by {self.title}: {why}; use {length if nfe > length else self.least}"
            )

    def prepare(self, nfe: int, temperature: float, device: torch.device) -> None:
        self.check_budget(nfe)
        # Weights that are changed in place have other versions.
        key = nfe, temperature, sum(value._version for value in self.method.parameters())
        if key == self._key:
            return
        strict, lenient = self.dials
        for _ in range(_HALVINGS):
            dial = 0.5 * (strict + lenient)
            generator = torch.Generator(device=device).manual_seed(_SEED)
            drawn = self.run(_SEQUENCES, dial, generator, temperature, _SEQUENCES * nfe, finish=False)
            strict, lenient = (strict, dial) if drawn is not None and _at_most(drawn.calls_N, nfe) else (dial, lenient)
        self._key, self._dial = key, lenient

    def draw(self, n: int, nfe: int, generator: torch.Generator, temperature: float = 1.0) -> Draw:
        self.prepare(nfe, temperature, generator.device)
        drawn = self.run(n, self._dial, generator, temperature, n * nfe)
        assert drawn is not None and drawn.calls_N is not None  # nothing runs out that is finished
        return Draw(drawn.x_NL, nfe_latent=0, nfe_token=nfe, draw_dtype=drawn.draw_dtype, calls_N=drawn.calls_N)

    def run(
        self, n: int, dial: float, generator: torch.Generator, temperature: float, most: int, finish: bool = True
    ) -> Draw | None:
        """`n` sequences with this dial, in at most `most` calls of single sequences.

        Where they run out: with `finish` sequences are finished early, else None.
        """
        m, mask_id, dtype = self.method, self.method.problem.vocab_size, "float64"
        x_NL = torch.full((n, m.problem.length), mask_id, dtype=torch.int64, device=generator.device)
        calls_N, kept = torch.zeros(n, dtype=torch.int64, device=generator.device), None
        rows_A = torch.arange(n, device=generator.device)
        while len(rows_A):
            x_AL = x_NL[rows_A]
            hidden_AL = x_AL == mask_id
            t_A = m.schedule.time(1.0 - hidden_AL.double().mean(1)).float()
            read_MF, dtype = self._read(m.denoise(x_AL, hidden_AL, t_A), generator, temperature)
            calls_N[rows_A] += 1
            most -= len(rows_A)
            reveal_AL, kept = self.choose(read_MF[:, 1:], hidden_AL, dial, kept)
            left_A = (hidden_AL & ~reveal_AL).sum(1)
            if int((left_A > 0).sum()) > most:
                if not finish:
                    return None
                last_A = left_A <= left_A.sort(stable=True).values[len(left_A) - most - 1]
                reveal_AL, left_A = torch.where(last_A[:, None], hidden_AL, reveal_AL), left_A.masked_fill(last_A, 0)
            x_AL[reveal_AL] = read_MF[reveal_AL[hidden_AL], 0].long()
            x_NL[rows_A] = x_AL
            rows_A, kept = rows_A[left_A > 0], tuple(each[left_A > 0] for each in kept)
        return Draw(x_NL, nfe_latent=0, nfe_token=0, draw_dtype=dtype, calls_N=calls_N)

    def _read(self, logits_MV: Tensor | Logits, generator: torch.Generator, temperature: float) -> tuple[Tensor, str]:
        """A drawn token and the features of each masked position, (M, 1 + F), in one pass; the dtype that was drawn from."""
        u_M1 = torch.rand((len(logits_MV), 1), generator=generator, dtype=masked.DRAW_DTYPE, device=logits_MV.device)

        def read(logits_RV: Tensor, u_R1: Tensor) -> Tensor:
            log_p_RV = (logits_RV.to(masked.DRAW_DTYPE) / temperature).log_softmax(-1)
            return torch.cat((masked.invert(log_p_RV, u_R1)[:, None], self.features(log_p_RV)), dim=1)

        return masked.by_rows(read, logits_MV, u_M1), str(u_M1.dtype).removeprefix("torch.")


def _at_most(calls_N: Tensor | None, nfe: int) -> bool:
    """Whether the mean and two of its standard errors are."""
    assert calls_N is not None
    calls_N = calls_N.double()
    return float(calls_N.mean() + 2.0 * calls_N.std() / math.sqrt(len(calls_N))) <= nfe
