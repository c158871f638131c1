"""The judge that knows: the data's own law, where the data come from a task with an exact answer.

Texts are read back to ids by undoing `TokenData.decode` symbol by symbol, and scored with `-log p(x)`.

Shapes: N texts, L tokens, F statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from harness.config.fields import NoOptions
from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge, TextScores
from harness.judges.scoring import pooled_ppl
from harness.tasks.base import require_task

_CHECKED_ROWS = 16


class SymbolReader:
    """The inverse of a `decode` that writes one piece for each id, with the same separator (or none) between any two.

    Raises `UserError` where the pieces cannot be told apart.
    """

    def __init__(self, data: TokenData) -> None:
        pieces = [data.decode([v]) for v in range(data.vocab_size)]
        self._id_of = {piece: v for v, piece in enumerate(pieces)}
        both = data.decode([0, 0])
        self._separator = both[len(pieces[0]) : len(both) - len(pieces[0])]
        told_apart = all(pieces) and len(self._id_of) == data.vocab_size
        if self._separator:
            told_apart &= not any(self._separator in piece for piece in pieces)
        else:
            told_apart &= all(len(piece) == 1 for piece in pieces)
        rows = data.some("test", _CHECKED_ROWS).tolist()
        if not told_apart or any(self.ids(data.decode(row)) != row for row in rows):
            raise UserError(f"judge=oracle cannot read texts of {data.name} back to its {data.vocab_size} symbols")

    def ids(self, text: str) -> list[int] | None:
        """The ids of a text, or None where some piece of it is no symbol."""
        pieces = text.split(self._separator) if self._separator and text else list(text)
        found = [self._id_of.get(piece, -1) for piece in pieces]
        return None if -1 in found else found


class OracleJudge(Judge):
    """Exact negative log-likelihoods; a text of probability 0 costs infinitely many nats."""

    Options = NoOptions

    def check(self, data: TokenData) -> None:
        """Raise `UserError` where the data's law is not known, or their texts cannot be read back."""
        require_task(data.task, "judge=oracle")
        SymbolReader(data)

    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        """Take the law from the data; `UserError` where they have none, or their texts cannot be read back."""
        self._task = require_task(data.task, "judge=oracle")
        self._reader, self._data = SymbolReader(data), data
        self.__dict__.pop("heldout_ppl", None)

    @property
    def identity(self) -> str:
        """`oracle/<task>-<fingerprint of the data>/float64`."""
        return f"oracle/{self._task.name}-{self._data.fingerprint[:16]}/float64"

    @cached_property
    def heldout_ppl(self) -> float:
        """Pooled perplexity of all rows of the test split: near exp(H / L)."""
        test_NL = np.asarray(self._data.splits["test"], dtype=np.int64)
        return pooled_ppl(self._scores(torch.from_numpy(test_NL)))

    def score(self, texts: Sequence[str]) -> TextScores:
        """`-log p(x)` in nats and L tokens for each text; infinity for what is no sequence of L symbols."""
        rows = [self._row(text) for text in texts]
        good = [place for place, row in enumerate(rows) if row is not None]
        nll_N = np.full(len(texts), np.inf)
        if good:
            nll_N[good] = self._scores(torch.tensor([rows[place] for place in good])).nll_N
        return TextScores(nll_N, np.full(len(texts), self._task.length, dtype=np.int64))

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """(N, F) float32: the task's exact statistics. `UserError` for a text that is no sequence of L symbols."""
        rows = [self._row(text) for text in texts]
        if None in rows:
            text = texts[rows.index(None)]
            raise UserError(
                f"judge=oracle cannot read {text[:40]!r}: it is not {self._task.length} symbols of its task"
            )
        x_NL = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self._task.length)
        return self._task.statistics(x_NL).numpy().astype(np.float32)

    def _row(self, text: str) -> list[int] | None:
        ids = self._reader.ids(text)
        return ids if ids is not None and len(ids) == self._task.length else None

    def _scores(self, x_NL: torch.Tensor) -> TextScores:
        nll_N = -self._task.log_prob(x_NL).numpy()
        return TextScores(nll_N, np.full(len(nll_N), self._task.length, dtype=np.int64))
