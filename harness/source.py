"""Which of the code a class depends on, as hashes: a number that other code made is told apart from one that is current.

Code is text without comments, docstrings and blank lines. Of imports those are followed that lead to this project's packages
and to files outside of Python's own library and of its installed packages, such as a user's method.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

_PACKAGES = ("harness", "baselines", "lddm")
#: A module, and what is taken from it by name.
_Import = tuple[str, tuple[str, ...]]
_LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def code_of(modules: Iterable[str], beyond: tuple[str, ...] = ()) -> dict[str, str]:
    """Hash of the code by name of module: those named and, of ours, all that they import.

    `beyond` names modules and packages that are left out, with what only they import.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None or any(name == other or name.startswith(f"{other}.") for other in beyond):
            continue
        found[name], imports = _read(path, path.stat().st_mtime_ns, name)
        for base, inside in imports:
            waiting.append(base)
            home = _file(base)
            if home is not None and home.name == "__init__.py":  # what a package is asked for may be a module
                waiting += [f"{base}.{part}" for part in inside]
    return dict(sorted(found.items()))


@lru_cache(maxsize=1024)
def _file(name: str) -> Path | None:
    """The file of a module that is one of ours."""
    if _is_installed(name.split(".")[0]):
        return None
    spec = _spec(name)
    origin = spec.origin if spec else getattr(sys.modules.get(name), "__file__", None)
    return Path(origin) if origin and origin.endswith(".py") else None


def _spec(name: str) -> ModuleSpec | None:
    try:
        return getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):  # `name` is of something inside a module
        return None


@lru_cache(maxsize=1024)
def _is_installed(top: str) -> bool:
    """Whether a top-level name is Python's own or another package's: to ask for the parts of those would import them."""
    if top in sys.stdlib_module_names or top in _PACKAGES:
        return top not in _PACKAGES
    spec = _spec(top)
    places = [] if spec is None else [spec.origin] if spec.has_location else spec.submodule_search_locations or []
    return bool(places) and all(str(place).startswith(_LIBRARIES) for place in places)


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, name: str) -> tuple[str, tuple[_Import, ...]]:
    """(hash of the code, what it imports) of the module `name`; `changed` is the file's time."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    digest = hashlib.sha256(_without_words(text, tree).encode()).hexdigest()[:12]
    return digest, tuple(dict.fromkeys(_imports(tree, package)))


def _without_words(text: str, tree: ast.Module) -> str:
    """The text without comments, docstrings and blank lines, which change nothing that is computed."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                    lines[row - 1] = "" if row > getattr(node, "lineno", 0) else lines[row - 1]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _imports(tree: ast.AST, package: str) -> Iterator[_Import]:
    """All imports but those that are only for a type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from _imports(node, package)
