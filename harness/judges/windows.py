"""What a judge reads at a time: windows of at most `context` tokens, and batches of windows of like length.

The first window of a text owns all its tokens, each later one starts `stride` tokens further on and owns only those that no
window before it owned, so that every token is scored once, and one past the first window with at least `context - stride`
tokens before it. A text that fits the context is one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a text, by its number."""

    text: int
    start: int
    stop: int
    own: int  # the first token that this window owns; it owns up to `stop`


def windows_of(text: int, length: int, context: int, stride: int) -> list[Window]:
    """Windows over a text of `length` tokens, as the head of this file says; none for an empty text."""
    windows: list[Window] = []
    start, own = 0, 0
    while own < length:
        stop = min(start + context, length)
        windows.append(Window(text, start, stop, own))
        start, own = start + stride, stop
    return windows


def batches_of(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of similar length together, at most `batch_tokens` with padding, at least one a batch; none is left."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda w: w.stop - w.start):  # stable, and the newest is the longest
        if batch and (len(batch) + 1) * (window.stop - window.start) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
