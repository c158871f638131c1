"""Handwritten digits as sequences: 8 x 8 pictures, a token for each pixel, a grey level for each token; and their labels.

scikit-learn brings the pictures with it (no download): 1797 of the test part of "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak, 1998). Writers are not named, so all splits share them. Digits fill the height of the
picture and almost never touch its left edge: shifted copies would be another law, so there is no augmentation.

Shapes: N pictures, L = 64 pixels in rows from the top left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from harness.config.fields import ranged
from harness.data.base import SPLITS, DataSource, TokenData
from harness.errors import UserError

SIDE = 8
CLASSES = 10
GREY_LEVELS = 17
#: One character for each grey level, dark to bright, in decoded text.
SYMBOLS = "0123456789abcdefg"
#: The reference set and the row of held-out data take `study.samples` each out of test and valid together.
TEST, VALID = 700, 100
_INK_FROM = 8  # of 16, where there are two levels
_SPLIT_SEED = 20_240_808


@dataclass
class DigitsOptions:
    """How many grey levels: 17 as published."""

    levels: int = ranged(GREY_LEVELS, 2, GREY_LEVELS)  # 2: ink or none, at 8 of 16; numbers between cut 0..16 evenly


class Digits(DataSource):
    """997 pictures to train, 100 to validate, 700 to test: a fixed split, each class in the same share of every part."""

    Options = DigitsOptions

    def load(self, length: int, cache: Path, tokenizer: object) -> TokenData:
        """See `DataSource.load`; `tokenizer` and `cache` are not used. `UserError` for any length but 64."""
        levels = self.options.levels
        if length != SIDE * SIDE:
            raise UserError(f"scale.length={length}: digits have 8 x 8 pixels, a token each; use scale.length=64")
        from sklearn.datasets import load_digits

        source = load_digits()
        x_NL, label_N = quantise(source.data.astype(np.int64), levels), source.target.astype(np.int64)
        rows = dict(zip(SPLITS, split_rows(label_N, VALID, TEST), strict=True))
        splits = {split: x_NL[index].astype(np.uint8) for split, index in rows.items()}
        labels = {split: label_N[index] for split, index in rows.items()}
        total = hashlib.sha256(f"digits {levels}\n".encode())
        for split in SPLITS:
            total.update(splits[split].tobytes() + labels[split].tobytes())
        facts: dict[str, str | int | float] = {"source": "scikit-learn load_digits", "grey_levels": levels}
        facts |= {f"pictures_{split}": len(splits[split]) for split in SPLITS}
        return TokenData(
            name="digits" if levels == GREY_LEVELS else f"digits-{levels}",
            vocab_size=levels,
            length=length,
            splits=splits,
            fingerprint=total.hexdigest(),
            decode=decode,
            facts=facts,
            render=partial(_render, levels),
            labels=labels,
        )


def quantise(grey_NL: np.ndarray, levels: int) -> np.ndarray:
    """Grey 0..16 to 0..levels-1: `floor(grey * levels / 17)`; for two levels 1 from 8 on."""
    if levels == 2:
        return (grey_NL >= _INK_FROM).astype(np.int64)
    return grey_NL * levels // GREY_LEVELS


def split_rows(label_N: np.ndarray, valid: int, test: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of train, valid and test, in random order; a class's share of each is that of all, to one picture.

    Each class is shuffled and its k-th picture of n put at place (k + 1/2) / n on a line; the line is cut in three.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    order_N = rng.permutation(len(label_N))
    place_N = np.empty(len(label_N))
    for label in np.unique(label_N):
        of_class = order_N[label_N[order_N] == label]
        place_N[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    line_N = order_N[np.argsort(place_N[order_N], kind="stable")]
    cut = rng.permutation(line_N[test + valid :]), line_N[test : test + valid], line_N[:test]
    return cut[0], rng.permutation(cut[1]), rng.permutation(cut[2])


def decode(row_L: Sequence[int]) -> str:
    """Eight lines of eight characters of `SYMBOLS`."""
    text = "".join(SYMBOLS[int(level)] for level in row_L)
    return "\n".join(text[start : start + SIDE] for start in range(0, len(text), SIDE))


def encode(texts: Sequence[str]) -> np.ndarray:
    """The ids (N, 64) that `decode` wrote; raises `UserError` for a text that is no such picture."""
    rows = []
    for text in texts:
        levels = [SYMBOLS.find(symbol) for symbol in text if symbol != "\n"]
        if len(levels) != SIDE * SIDE or min(levels) < 0:
            shown = text if len(text) <= 20 else text[:20] + "..."
            raise UserError(f"{shown!r} is no picture: data=digits writes 64 characters out of 0-9 and a-g")
        rows.append(levels)
    return np.asarray(rows, dtype=np.int64).reshape(len(rows), SIDE * SIDE)


def _render(levels: int, x_NL: np.ndarray) -> np.ndarray:
    """Ids (N, 64) to pictures (N, 8, 8) uint8: no ink is 0, the highest level 255, others evenly between."""
    grey_NL = np.rint(np.asarray(x_NL, dtype=np.float64) * (255 / (levels - 1)))
    return grey_NL.astype(np.uint8).reshape(-1, SIDE, SIDE)
