"""What stands in a study's folder before it goes on: damaged files are put aside, and results of other code are refused.

Every finished file of the study's cells is read once: is it as it was written, and made by the code that is here?
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest
from harness.jobs.locks import if_free
from harness.store import Damaged, read_json, read_jsonl
from harness.study.cells import DATA_ROW, Cell
from harness.study.folder import is_current, known_protocol, put_aside
from harness.study.made import changed
from harness.study.session import Session
from harness.training.checkpoint import load_hashed

ALL = "all"


@dataclass(frozen=True)
class Stale:
    """A finished step of a cell that does not go with what is here now: why, and the files that hold it and what follows."""

    cell: Cell
    step: str
    reason: str
    files: tuple[Path, ...]


def settle(session: Session, standing: Standing) -> None:
    """Make the folder ready to be continued: see the module. Raises `UserError` for results of other code.

    With `redo` those of the named methods are removed, so that they are made again; with `stale=keep` they stay.
    """
    _say(standing.damaged(aside=True))
    again = refuse_stale(session, standing)
    if again:
        put_aside(session)
        for path in {path for each in again for path in each.files}:
            path.unlink(missing_ok=True)


def refuse_stale(session: Session, standing: Standing) -> list[Stale]:
    """What `redo` names of what other code made; raises `UserError` for the rest, but with `stale=keep`."""
    found = list(standing.stale())
    again = [each for each in found if _is_named(each.cell, session.cfg.redo)]
    kept = [each for each in found if each not in again]
    if kept and session.cfg.stale == "refuse":
        raise UserError(_sentence(kept, standing.cells))
    _say(f"stale=keep: {_sentence(kept, standing.cells)}" for _ in kept[:1])
    return again


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


# ---- redo=[...] -------------------------------------------------------------------------------------------------------
def _names(cells: list[Cell]) -> list[str]:
    rows = {f"{cell.method}/{cell.sampler}" if cell.sampler else cell.method for cell in cells}
    return sorted({ALL, *(cell.method for cell in cells), *rows})


def check_redo(redo: list[str], cells: list[Cell]) -> None:
    """Raise `UserError` for a name in `redo` that the study does not have."""
    for name in redo:
        if name not in _names(cells):
            raise UserError(f"redo={name}: is no method or method/sampler of this study{nearest(name, _names(cells))}")


def _is_named(cell: Cell, redo: list[str]) -> bool:
    return bool({ALL, cell.method, f"{cell.method}/{cell.sampler}"} & set(redo))


def _sentence(found: list[Stale], cells: list[Cell]) -> str:
    """One line: whose results, what has changed since which commit, and the two ways on."""
    methods = list(dict.fromkeys(each.cell.method for each in found))
    reasons = list(dict.fromkeys(each.reason for each in found))
    more = f" (and {len(reasons) - 2} more)" if len(reasons) > 2 else ""
    everything = set(methods) >= {cell.method for cell in cells if cell.method != DATA_ROW}
    redo = ALL if everything else ",".join(methods)
    return (
        f"finished results of {', '.join(methods)} were made by other code than what is here: "
        f"{'; '.join(reasons[:2])}{more}; redo=[{redo}] makes them again, stale=keep goes on with them as they are"
    )


# ---- code -------------------------------------------------------------------------------------------------------------
class Standing:
    """Finished files of a study, each read once: what it was made by and its hash."""

    def __init__(self, session: Session, cells: list[Cell], data: Cell) -> None:
        self.session, self.study_cells, self.cells = session, cells, [*cells, data]
        self._known: dict[Path, tuple[dict[str, Any], str]] = {}

    # ---- damage -------------------------------------------------------------------------------------------------------
    def damaged(self, aside: bool) -> Iterator[str]:
        """Read every file; a line for each that is damaged, and with `aside` it becomes `<name>.damaged`."""
        keys = {cell.weights.model: cell.weights.key for cell in self.study_cells}
        for path in self._files():
            try:
                self._known[path] = _read(path, keys.get(path))
            except Damaged as error:
                if aside:
                    os.replace(path, path.with_name(f"{path.name}.damaged"))
                yield f"{path} is damaged ({error.reason}): it is kept as {path.name}.damaged and made again"

    def _files(self) -> Iterator[Path]:
        yield from (self.session.folder / name for name in ("state.json", "protocol.json"))
        for folder in dict.fromkeys(cell.weights.folder for cell in self.cells if cell.weights.trained):
            if folder.is_dir():
                with if_free(folder / ".lock") as free:  # else somebody trains there now
                    yield from _ours(folder) if free else ()
        for cell in self.cells:
            yield from _ours(cell.folder)

    # ---- code ---------------------------------------------------------------------------------------------------------
    def stale(self) -> Iterator[Stale]:
        """Steps that other code made, or from something else than what is there: the first of each cell, after `damaged`."""
        # The protocol that is written down may be that of another configuration.
        protocol = known_protocol(self.session) if is_current(self.session, self.study_cells) else None
        for cell in self.cells:
            after = [*_ours(cell.folder), *self.session.folder.glob(f"samples/{cell.name.replace('/', '-')}-*.jsonl")]
            if found := self._trained(cell, after) or self._drawn(cell, after) or self._scored(cell, protocol):
                yield found

    def _trained(self, cell: Cell, after: list[Path]) -> Stale | None:
        w = cell.weights
        made = next((self._known[path][0] for path in (w.model, w.plan) if path in self._known and w.trained), None)
        return self._differs("train", cell, made, "", [*_ours(w.folder), *after]) if made else None

    def _drawn(self, cell: Cell, after: list[Path]) -> Stale | None:
        _, weights = self._known.get(cell.weights.model, ({}, ""))
        for path in (cell.facts(self.session), *(cell.samples(self.session, part) for part in cell.parts)):
            if path in self._known and (found := self._differs("sample", cell, self._known[path][0], weights, after)):
                return found
        return None

    def _scored(self, cell: Cell, protocol: str | None) -> Stale | None:
        scores = sorted(cell.folder.glob("scores-*.json"))
        for part in cell.parts if protocol else ():
            path = cell.scores(self.session, part, str(protocol))
            _, samples = self._known.get(cell.samples(self.session, part), ({}, ""))
            if path in self._known and (found := self._differs("score", cell, self._known[path][0], samples, scores)):
                return found
        return None

    def _differs(self, step: str, cell: Cell, made: dict[str, Any], of: str, files: list[Path]) -> Stale | None:
        """The step as stale, unless the code that made it and what it was made from are still the same."""
        modules = changed(self.session, step, cell.weights if step == "train" else cell, made)
        # What it was made from is made again, where it is not there, and is the same then as far as numbers can be.
        if not modules and of in ("", made["of"]):
            return None
        reason = what_changed(made["commit"], modules or [f"what the {step} step read"])
        return Stale(cell, step, reason, tuple(files))


def _ours(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.*") if path.suffix in (".json", ".jsonl", ".safetensors"))


def _read(path: Path, key: str | None) -> tuple[dict[str, Any], str]:
    """(what the file was made by, its hash), as far as it says so; raises `Damaged`, too for a model with another key."""
    if path.suffix == ".safetensors":
        _, meta, digest = load_hashed(path)
        if key and meta.get("key") != key:  # names and shapes may agree all the same
            raise Damaged(path, "it is of another model")
        return meta.get("made", {}), digest
    if path.suffix == ".jsonl":
        read_jsonl(path)
        return {}, ""
    return (read_json(path) if path.exists() else {}).get("made", {}), ""


def what_changed(commit: str, names: list[str]) -> str:
    """In words: what is not as it was, since which commit (ten digits, and whether files differed from it)."""
    sha, dirty, _ = commit.partition("-")
    shown = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    return f"{shown} changed since {sha[:10]}{'-dirty' if dirty else ''}"
