"""Sequences drawn from a task with an exact answer, as a source of data like any other.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.fields import ranged
from harness.data.base import SPLITS, DataSource, TokenData
from harness.data.files import digest
from harness.tasks.base import ExactTask

SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyz"
LARGEST_VOCABULARY = 256
_VERSION = 1


@dataclass
class TaskSourceOptions:
    """How many rows are drawn."""

    train: int = ranged(65536, 1)  # rows of the training split
    heldout: int = ranged(8192, 1)  # rows of each held-out split
    seed: int = ranged(0, 0)  # of the rows


class TaskSource(DataSource):
    """Draws the three splits from a task; nothing is kept on disk and the tokenizer is not used."""

    Options = TaskSourceOptions

    @abstractmethod
    def task(self, length: int) -> ExactTask:
        """The task that the options describe; `UserError` for a length or an option that it cannot have."""

    def facts(self, task: ExactTask) -> dict[str, float]:
        """Further known numbers of the task, by name."""
        return {}

    def load(self, length: int, cache: Path | None, tokenizer: Any) -> TokenData:
        """See `DataSource.load`; `task` is set, and the facts hold its exact numbers in nats per sequence."""
        options = self.options
        task = self.task(length)
        rows = {"train": options.train, "valid": options.heldout, "test": options.heldout}
        splits = {
            split: task.sample(rows[split], np.random.default_rng([options.seed, k])).astype(np.uint8)
            for k, split in enumerate(SPLITS)
        }
        content = {split: hashlib.sha256(x_NL.tobytes()).hexdigest() for split, x_NL in splits.items()}
        return TokenData(
            name=task.name,
            vocab_size=task.vocab_size,
            length=length,
            splits=splits,
            fingerprint=digest([_VERSION, task.name, length, dataclasses.asdict(options), content]),
            decode=_decoder(task.vocab_size),
            facts=_exact_facts(task) | self.facts(task) | {f"rows_{split}": n for split, n in rows.items()},
            task=task,
        )


def _exact_facts(task: ExactTask) -> dict[str, str | int | float]:
    exact = task.exact
    facts: dict[str, str | int | float] = {
        "vocab_size": task.vocab_size,
        "entropy_nats": exact.entropy,
        "total_correlation_nats": exact.total_correlation,
        "exact_error_nats": exact.error,
    }
    if exact.latent_information is not None:
        facts["latent_information_nats"] = exact.latent_information
    return facts


def _decoder(vocab_size: int) -> Callable[[Sequence[int]], str]:
    """Ids as single characters, digits and then letters; as numbers between spaces where those do not suffice."""
    if vocab_size > len(SYMBOLS):
        return lambda ids: " ".join(str(int(i)) for i in ids)

    def decode(ids: Sequence[int]) -> str:
        return "".join(SYMBOLS[i] for i in ids)

    return decode
