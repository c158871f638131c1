"""One token a character, over a fixed alphabet: text8's 27 symbols, or printable ASCII."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config.fields import chosen
from harness.data.tokenizers import Tokenizer, TokenizerSpec

ALPHABETS = {
    "text8": "abcdefghijklmnopqrstuvwxyz ",
    "printable": "".join(map(chr, range(32, 127))) + "\n",
}
_LEFT_OUT = 255
_CODE_POINTS = 1 << 16

#: Characters that become several; those that become one are folded in the table of code points.
_SEVERAL = {"\u2014": "--", "\u2015": "--", "\u2026": "...", "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe"}
_SEVERAL |= {"\u0152": "Oe", "\u00df": "ss", "\ufb01": "fi", "\ufb02": "fl"}
_SINGLE = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"),
}
_DIGIT = re.compile("[0-9]")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPELLED = {str(digit): name for digit, name in enumerate(_NAMES)}


@dataclass
class CharactersOptions:
    """Which characters there are."""

    alphabet: str = chosen("printable", ALPHABETS)  # text8: a to z and space; printable: ASCII 32 to 126 and newline


class Characters(TokenizerSpec):
    """Characters of a fixed alphabet; nothing is learnt, and there are no special tokens.

    "printable" folds typographic quotes and dashes to ASCII, drops accents, and leaves other characters out.
    "text8" is Mahoney's form: lower case, digits spelled out, all else one space; accents are dropped as well. Text in
    that form already passes unchanged.
    """

    Options = CharactersOptions

    def build(self, documents: Sequence[str], cache: Path, key: str) -> Tokenizer:
        return _CharacterTokenizer(self.options.alphabet)

    def restore(self, text: str) -> Tokenizer:
        return _CharacterTokenizer(self.options.alphabet)


class _CharacterTokenizer(Tokenizer):
    loses, most_lost = "characters_left_out", 0.5

    def __init__(self, name: str) -> None:
        alphabet = ALPHABETS[name]
        self._text8 = name == "text8"
        self._alphabet_V = np.frombuffer(alphabet.encode("ascii"), dtype=np.uint8)
        self._space = alphabet.index(" ")
        self.vocab_size = len(alphabet)
        self.identity = f"characters-{name}-{1 if self._text8 else 2}"
        self.separator = (alphabet.index(" " if self._text8 else "\n"),)
        self.separator_bytes = 1

    def encode_batch(self, documents: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(document) for document in documents]

    def _encode(self, text: str) -> np.ndarray:
        if self._text8 and _DIGIT.search(text) is not None:
            for digit, name in _SPELLED.items():
                text = text.replace(digit, f" {name} ")
        ids = _table("text8" if self._text8 else "printable")[_points(text)]
        ids = ids[ids != _LEFT_OUT]
        return _collapse(ids, self._space) if self._text8 else ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._alphabet_V[np.asarray(ids, dtype=np.int64)].tobytes().decode("ascii")

    def text_bytes(self, documents: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
        """One byte a token: what the alphabet leaves out is not modelled, so it is not counted either."""
        return sum(map(len, encoded))

    def lost(self, documents: Sequence[str], encoded: Sequence[np.ndarray]) -> tuple[int, int]:
        """Letters, digits and signs outside of ASCII that have no symbol, of all characters but white space.

        Marks and punctuation do not count: accents are dropped, and text8 has none of ASCII's signs.
        """
        left_out, total = _left_out("text8" if self._text8 else "printable"), 0
        lost = 0
        for points in map(_points, documents):
            lost += 0 if points.dtype == np.uint8 else int(left_out[points].sum())
            total += int((points > ord(" ")).sum())
        return lost, total


def _points(text: str) -> np.ndarray:
    """Code points of a text, uint8 where all are ASCII; the last of the basic plane stands for all above it."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    for character, several in _SEVERAL.items():
        text = text.replace(character, several)
    return np.minimum(np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4"), _CODE_POINTS - 1)


@functools.cache
def _table(name: str) -> np.ndarray:
    """The id of every code point of the basic plane (the last one stands for all above it), or `_LEFT_OUT`."""
    alphabet = ALPHABETS[name]
    place = {character: number for number, character in enumerate(alphabet)}
    table = np.full(_CODE_POINTS, place[" "] if name == "text8" else _LEFT_OUT, dtype=np.uint8)
    for point in range(_CODE_POINTS):
        character = chr(point)
        if character in _SINGLE:
            character = _SINGLE[character]
        elif character.isspace() and character != "\n":
            character = " "
        elif point > 127:
            base = unicodedata.normalize("NFKD", character)
            if unicodedata.combining(base[0]):
                table[point] = _LEFT_OUT
                continue
            character = base[0]
        if name == "text8":
            character = character.lower()
        if character in place:
            table[point] = place[character]
    return table


@functools.cache
def _left_out(name: str) -> np.ndarray:
    """Whether a code point is a letter, digit or sign outside of ASCII that has no symbol; so are all above the basic plane."""
    nothing = ALPHABETS[name].index(" ") if name == "text8" else _LEFT_OUT
    lost = _table(name) == nothing
    for point in np.flatnonzero(lost):
        lost[point] = point > 127 and unicodedata.category(chr(point))[0] in "LNS"
    lost[-1] = True
    return lost


def _collapse(ids: np.ndarray, space: int) -> np.ndarray:
    """Runs of spaces made one, and the ends of such a text stripped; a text without runs is left as it is."""
    is_space = ids == space
    repeated = is_space[1:] & is_space[:-1]
    if not repeated.any():
        return ids
    ids = ids[np.concatenate([[True], ~repeated])]
    return ids[int(ids[0] == space) : len(ids) - int(ids[-1] == space)]
