"""Docstrings of Python files, read with `ast` and cleaned to paragraphs; nothing is imported or run.

As a worker process (`python -m harness.data.extract`): a JSON list of file paths on standard input, one JSON line for
each on standard output, in the same order: the documents of that file, each a list of paragraphs.
"""

from __future__ import annotations

import ast
import gc
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from harness.data.prose import paragraphs

#: Calls that attach documentation to something written in C, or to a template: their string arguments are docstrings.
_DOCUMENTING_CALLS = frozenset({"add_docstr", "_add_docstr", "add_newdoc", "_add_newdoc_ufunc", "add_docstr_all"})
_LARGEST_FILE = 4_000_000
#: Files with less than this share of triple-quoted text are not parsed: a fifth of the time for a fiftieth of the text.
_SPARSE = 0.08


def documents_of_file(path: Path) -> list[list[str]]:
    """The docstrings of `path` as lists of paragraphs; empty for a file that cannot be read or parsed as Python."""
    try:
        source = path.read_bytes()
    except OSError:
        return []
    if len(source) > _LARGEST_FILE or _quoted(source) <= _SPARSE * len(source):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = (paragraphs(docstring) for docstring in _docstrings(tree))
    return [document for document in found if document]


def _quoted(source: bytes) -> int:
    """Bytes between pairs of triple quotes: close to what the docstrings of a file amount to."""
    return sum(len(part) for quotes in (b'"""', b"'''") for part in source.split(quotes)[1::2])


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module, class or function and of all that is defined inside, in order of the source."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        own = ast.get_docstring(node, clean=False)
        if own:
            yield own
    for part in (body, *(getattr(node, name, []) for name in ("handlers", "orelse", "finalbody"))):
        for statement in part:
            if isinstance(statement, ast.Expr):
                yield from _documenting_strings(statement.value)
            else:
                yield from _docstrings(statement)


def _documenting_strings(value: ast.AST) -> Iterator[str]:
    if not isinstance(value, ast.Call):
        return
    name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
    if name in _DOCUMENTING_CALLS:
        for part in ast.walk(value):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value:
                yield part.value


def main() -> None:
    """Serve one list of paths. Syntax trees hold no cycles: without the cycle collector parsing is twice as fast."""
    gc.disable()
    for path in json.load(sys.stdin):
        sys.stdout.write(json.dumps(documents_of_file(Path(path))) + "\n")


if __name__ == "__main__":
    main()
