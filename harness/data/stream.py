"""Text files as a stream of lines: unpacked and decoded a block at a time, within limits that a file cannot pass unseen."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.errors import UserError

#: Characters of the longest line, paragraph or whole text that is read as one document; text8, in one line, has 10^8.
LONGEST_DOCUMENT = 1 << 27
#: A gzip file may hold so many times its own size, and always the bytes of the second number. Text is packed to a fourth.
MOST_PACKED, ALWAYS_UNPACKED = 50, 1 << 24
_BLOCK = 1 << 20
#: What ends a line besides a newline: carriage return, vertical tab, form feed, the separators of ASCII and Unicode.
_ENDINGS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_ENDING = re.compile(f"\r\n|[{_ENDINGS}]")


def with_newlines(text: str) -> str:
    """The text with a newline in the place of every other ending of a line."""
    return _ENDING.sub("\n", text) if any(end in text for end in _ENDINGS) else text  # which is ten times as fast


def blocks_of(path: Path) -> Iterator[str]:
    """The text of a file of UTF-8, gzipped if its name ends in `.gz`; CRLF and CR become newlines, a byte-order mark goes.

    Raises `UserError` in one line for a file that cannot be read, is not text, or unpacks to more than text does.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    at, is_packed = 0, path.name.endswith(".gz")
    try:
        most = max(ALWAYS_UNPACKED, MOST_PACKED * path.stat().st_size) if is_packed else None
        with gzip.open(path) if is_packed else path.open("rb") as file:
            while data := file.read(_BLOCK):
                if b"\x00" in data:
                    raise UserError(f"{path} is not text: NUL at byte {at + data.index(0)}; give UTF-8 text")
                before, at = at - len(decoder.getstate()[0]), at + len(data)
                if most is not None and at > most:
                    raise UserError(
                        f"{path} unpacks to more than {MOST_PACKED} times its size, which text does not; unpack it "
                        "yourself if it is meant"
                    )
                text = _decoded(decoder, data, path, before)
                yield text if before else text.removeprefix("\ufeff")
        yield _decoded(decoder, b"", path, at - len(decoder.getstate()[0]), final=True)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({error}); copy it again, or unpack it to {path.stem}"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable file") from error


def _decoded(decoder: io.IncrementalNewlineDecoder, data: bytes, path: Path, at: int, final: bool = False) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {at + error.start}); convert it, for example with iconv -t UTF-8"
        ) from error


def lines_of(blocks: Iterable[str], path: Path) -> Iterator[str]:
    """The lines of a text that comes in blocks, without their ends; raises `UserError` for one that is too long."""
    parts: list[str] = []
    size = 0
    for block in blocks:
        first, *others = block.split("\n")
        parts.append(first)
        size = _checked(size + len(first), "line", path)
        for line in others:
            whole, parts, size = "".join(parts), [line], len(line)
            yield whole
    yield "".join(parts)


def runs_of(lines: Iterable[str], path: Path, whole: bool) -> Iterator[str]:
    """Paragraphs, which lines of white space separate; or, if `whole`, all lines as one text. Raises as `lines_of`."""
    run: list[str] = []
    size = 0
    for line in lines:
        if whole or line.strip():
            run.append(line)
            size = _checked(size + len(line) + 1, "text" if whole else "paragraph", path, "use data.documents=lines")
        elif run:
            yield "\n".join(run)
            run, size = [], 0
    if run:
        yield "\n".join(run)


def _checked(size: int, what: str, path: Path, instead: str = "break it into lines") -> int:
    if size > LONGEST_DOCUMENT:
        raise UserError(
            f"{path} has a {what} of more than {LONGEST_DOCUMENT} characters, the most that is read as one document; "
            f"{instead}"
        )
    return size
