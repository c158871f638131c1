"""Documents to one stream of ids, batch by batch, by this process or by several of its own.

Shapes: T tokens of a batch.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from harness.data.tokenizers import Tokenizer
from harness.errors import UserError

_DOCUMENTS_A_BATCH, _CHARACTERS_A_BATCH = 4096, 1 << 22
#: Text of fewer characters is not worth other processes, which take seconds to start.
_WORTH_PROCESSES = 1 << 27
#: Batches of each process that are on their way: one that it works on, and the next.
_WAITING = 2
_PROCESSES: ContextVar[int] = ContextVar("processes that encode text", default=1)


@contextmanager
def at_most(processes: int) -> Iterator[None]:
    """Inside, much text is encoded by so many processes."""
    before = _PROCESSES.set(processes)
    try:
        yield
    finally:
        _PROCESSES.reset(before)


@dataclass(frozen=True)
class Stretch:
    """Ids (T,) of a batch with a separator in front of each document, of which `documents` have any; and of how much text."""

    ids_T: np.ndarray
    documents: int
    text_bytes: int
    lost: tuple[int, int]


class Encoder:
    """What turns a batch of documents into a stretch of ids of this dtype."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.separator = np.asarray(tokenizer.separator, dtype=dtype)

    def __call__(self, batch: list[str]) -> Stretch:
        encoded = self.tokenizer.encode_batch(batch)
        found = [ids for ids in encoded if len(ids)]
        parts = [part.astype(self.dtype) for ids in found for part in (self.separator, ids)]
        ids_T = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        return Stretch(
            ids_T, len(found), self.tokenizer.text_bytes(batch, encoded), self.tokenizer.lost(batch, encoded)
        )

    def stretches(self, documents: Sequence[str]) -> Iterator[Stretch]:
        """Those of all batches, in their order. Besides the documents, memory holds one batch of 4096 of them, or of 4M
        characters and a document, with its ids; and two for each process that encodes."""
        processes = _PROCESSES.get()
        # Neither a worker of a pool nor a small text has processes of its own.
        if multiprocessing.current_process().daemon or not _is_much(documents):
            processes = 1
        if processes == 1:
            yield from map(self, _batches(documents))
            return
        waiting: deque[Future[Stretch]] = deque()
        # Each starts as a fresh interpreter: a copy of this one would have the locks of threads that it has not.
        fresh = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(processes, fresh, _begin, (self,)) as pool:
                for batch in _batches(documents):
                    waiting.append(pool.submit(_encode, batch))
                    if len(waiting) >= _WAITING * processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {processes} processes that turn text into ids ended; use compute.workers=1, which needs less memory"
            ) from error


def _is_much(documents: Sequence[str]) -> bool:
    """Whether there are so many characters that processes pay; the rest is not read for that."""
    return any(total >= _WORTH_PROCESSES for total in accumulate(map(len, documents)))


_encoder: Encoder  # of a process that only encodes


def _begin(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder


def _encode(batch: list[str]) -> Stretch:
    return _encoder(batch)


def _batches(documents: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    waiting = 0
    for document in documents:
        batch.append(document)
        waiting += len(document)
        if len(batch) == _DOCUMENTS_A_BATCH or waiting >= _CHARACTERS_A_BATCH:
            yield batch
            batch, waiting = [], 0
    if batch:
        yield batch
