"""What the trained judge learns from: text of the training split, its own byte-level BPE, and the stream of its ids.

Shapes: N rows, L tokens of the generator, T tokens of the judge.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from harness.data.base import TokenData
from harness.data.bpe import learn_bpe
from harness.errors import UserError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
_BLOCK_TOKENS = 16_384  # generator tokens decoded in one go: long enough to read on, short enough to spread
_MEASURED_BLOCKS = 4


def training_blocks(data: TokenData, max_chars: int) -> Iterator[str]:
    """Blocks of running text, evenly spread over the training split, of about `max_chars` characters in all.

    Rows are consecutive windows of a stream, so a block of them is decoded in one go and reads on across rows.
    """
    train_NL = data.splits["train"]
    rows = max(1, _BLOCK_TOKENS // data.length)
    starts = np.arange(0, len(train_NL), rows)

    def text(start: int) -> str:
        return data.decode(np.asarray(train_NL[start : start + rows]).reshape(-1).tolist())

    measured = [len(text(int(start))) for start in _spread(starts, _MEASURED_BLOCKS)]
    chars = max(1.0, float(np.mean(measured))) if measured else 1.0
    for start in _spread(starts, max(1, round(max_chars / chars))):
        yield text(int(start))


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    if count >= len(items):
        return items
    return items[np.linspace(0, len(items) - 1, count).round().astype(np.int64)]


def train_tokenizer(data: TokenData, vocab: int, max_chars: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab` ids: 0 is end-of-text, then come the 256 bytes, so any text can be read."""
    return learn_bpe(training_blocks(data, max_chars), vocab, [END_OF_TEXT])


def token_stream(data: TokenData, tokenizer: Tokenizer, max_chars: int) -> np.ndarray:
    """Ids (T,) int32 of the training text, blocks kept apart by end-of-text.

    Raises `UserError` where there is too little text for a single window.
    """
    parts: list[np.ndarray] = []
    for block in training_blocks(data, max_chars):
        parts.append(np.asarray(tokenizer.encode_batch_fast([block])[0].ids, dtype=np.int32))
        parts.append(np.asarray([END_OF_TEXT_ID], dtype=np.int32))
    stream_T = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    if len(stream_T) < 3:
        raise UserError(f"judge=trained finds no text in the training split of data {data.name}; use more data")
    return stream_T
