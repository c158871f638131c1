"""The shape of the code: which way imports point, how long files are, what is never called, and what is written down."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("harness", "baselines", "lddm")
SOURCE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = [*SOURCE, *sorted((ROOT / "studies").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
EVERYTHING += [path for name in ("benchmarks", "docs") for path in sorted((ROOT / name).rglob("*.py"))]
MAX_LINES = 300


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: imports are absolute, so that this test can read them"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_the_packages_are_found():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCE} == set(PACKAGES) and len(SOURCE) > 50


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_arrows_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    modules = _imports(path)
    if package == "harness":
        forbidden = {m for m in modules if _within(m, "baselines", "lddm", "studies", "tests")}
        # The folder of YAML files is found through its package; nothing else of it is used.
        allowed = {"studies"} if _name(path) == "harness/config/registry.py" else set()
    else:
        other = "lddm" if package == "baselines" else "baselines"
        service = ("harness.tracking", "harness.report", "harness.study", "harness.run", "harness.judges", other)
        forbidden = {m for m in modules if _within(m, "mlflow", "optuna", "hydra", "tests", *service)}
        allowed = set()
    assert forbidden <= allowed, f"{_name(path)} imports {sorted(forbidden - allowed)}"


@pytest.mark.parametrize("path", EVERYTHING, ids=_name)
def test_files_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{_name(path)} has {lines} lines"


# ---- what is never called ---------------------------------------------------------------------------------------------
_UNSAFE_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
_UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
_UNSAFE_KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}


def _unsafe(tree: ast.Module) -> list[str]:
    """Calls and imports that run or unpack what a file of somebody else says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in _UNSAFE_CALLS or called.rsplit(".", 1)[-1] in ("read_pickle", "to_pickle"):
                found.append(f"{called}() in line {node.lineno}")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                # A value that is not written out could be anything.
                unknown = not isinstance(keyword.value, ast.Constant)
                if keyword.arg in _UNSAFE_KEYWORDS and (unknown or value == _UNSAFE_KEYWORDS[keyword.arg]):
                    found.append(f"{keyword.arg}={ast.unparse(keyword.value)} in line {node.lineno}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"import {name} in line {node.lineno}" for name in names if name.split(".")[0] in _UNSAFE_MODULES]
    return found


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_nothing_runs_or_unpickles_what_others_wrote(path):
    assert _unsafe(_tree(path)) == []


def test_the_search_for_unsafe_calls_finds_them():
    text = (
        "import pickle\nfrom joblib import load\ntorch.load(p)\neval('1')\nrun(c, shell=True)\n"
        "load(n, trust_remote_code=flag)\nnp.load(p, allow_pickle=True)\nframe.to_pickle(p)\n"
        "model.eval()\nnp.load(p, allow_pickle=False)\nrun(c, shell=False)\n"
    )
    assert len(_unsafe(ast.parse(text))) == 8


# ---- what is written down ---------------------------------------------------------------------------------------------
def _definitions(path: Path):
    """(qualified name, node, class) of what a file defines at its top and in its classes; not inside functions."""
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node, None
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner, node


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _statements(node: ast.AST) -> int:
    return sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1


#: A public function without a docstring is small enough for its name and types to say it all.
_TRIVIAL = 4


@functools.cache
def _documented_methods() -> frozenset[str]:
    """Names of methods that some abstract base class describes; those that implement them need not repeat it."""
    found = {"forward"}  # described by the class
    for path in SOURCE:
        for name, node, cls in _definitions(path):
            if cls is not None and isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                found.add(name.split(".")[1])
    return frozenset(found)


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_public_code_is_described(path):
    missing = []
    if _tree(path).body and not ast.get_docstring(_tree(path)):
        missing.append("the module")
    for name, node, cls in _definitions(path):
        if not _is_public(name) or ast.get_docstring(node):
            continue
        if isinstance(node, ast.ClassDef):
            # Options are described beside their fields or by the class that they belong to.
            if not name.endswith("Options"):
                missing.append(f"class {name}")
        elif _statements(node) > _TRIVIAL and (cls is None or node.name not in _documented_methods()):
            missing.append(name)
    assert not missing, f"{_name(path)}: no docstring on {', '.join(missing)}"


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_public_functions_have_typed_parameters(path):
    bare = []
    for name, node, cls in _definitions(path):
        if not isinstance(node, ast.FunctionDef) or not _is_public(name):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        is_static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
        given = given[1:] if cls is not None and not is_static else given
        bare += [f"{name}({a.arg})" for a in given if a.annotation is None and not _is_inherited(cls, node)]
    assert not bare, f"{_name(path)}: no type on {', '.join(bare)}"


def _is_inherited(cls: ast.ClassDef | None, node: ast.FunctionDef) -> bool:
    """Whether a base class of the harness declares the method with its types."""
    return cls is not None and bool(cls.bases) and node.name in _documented_methods()
