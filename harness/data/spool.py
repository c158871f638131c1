"""Documents in a file without a name: as many as the disk holds, of which memory has the place of each and no text."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError


class Spool(Sequence[str]):
    """A sequence of texts that grows at its end; its file lies in `folder` (None: where temporary files do) and goes with it.

    Eight bytes of memory a document. Raises `UserError` in one line where the disk is full.
    """

    def __init__(self, folder: Path | None, documents: Iterable[str] = ()) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._ends, self._unwritten = folder, array("Q", [0]), False
        # Open as long as it is wanted: nobody else has a name for it.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        for document in documents:
            self.append(document)

    def append(self, document: str) -> None:
        """At the end."""
        content = document.encode("utf-8", "surrogatepass")
        self._put(lambda: self._file.write(content))
        self._ends.append(self._ends[-1] + len(content))
        self._unwritten = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = range(len(self))[place]
        if self._unwritten:
            self._put(self._file.flush)
            self._unwritten = False
        # At a place of its own, so that several may read at once.
        content = os.pread(self._file.fileno(), self._ends[i + 1] - self._ends[i], self._ends[i])
        return content.decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(own == its for own, its in zip(self, other, strict=True))

    def _put(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            raise UserError(
                f"{where} has no room for the documents that are read ({error.strerror}); use another cache_dir"
            ) from error
