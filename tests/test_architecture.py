"""The shape of the code: which way imports point, how long files are, what is never called, and what is written down."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("harness", "baselines", "lddm")
SOURCE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = [*SOURCE, *sorted((ROOT / "studies").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
EVERYTHING += [path for name in ("benchmarks", "docs") for path in sorted((ROOT / name).rglob("*.py"))]
MAX_LINES, MAX_FUNCTION = 300, 60


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


def _offenders(found: Iterable[tuple[Path, str]]) -> str:
    return "\n".join(f"{_name(path)}: {what}" for path, what in found)


def _forbidden(path: Path) -> set[str]:
    package, modules = path.relative_to(ROOT).parts[0], _imports(path)
    if package == "harness":
        found = {m for m in modules if _within(m, "baselines", "lddm", "studies", "tests")}
        # The folder of YAML files is found through its package; nothing else of it is used.
        return found - ({"studies"} if _name(path) == "harness/config/registry.py" else set())
    other = "lddm" if package == "baselines" else "baselines"
    service = [
        f"harness.{room}" for room in ("tracking", "report", "study", "jobs", "search", "slurm", "run", "judges")
    ]
    return {m for m in modules if _within(m, "mlflow", "optuna", "hydra", "tests", other, *service)}


def test_arrows_point_one_way():
    found = [(path, f"imports {', '.join(sorted(names))}") for path in SOURCE if (names := _forbidden(path))]
    assert not found, _offenders(found)


def test_jobs_know_nothing_of_what_they_run():
    """`harness.jobs` runs any work: what a study, a search or a cluster is stands elsewhere."""
    rooms = tuple(f"harness.{room}" for room in ("study", "search", "slurm", "tracking", "report", "judges", "metrics"))
    found = [(p, f"imports {m}") for p in SOURCE if "jobs" in p.parts for m in _imports(p) if _within(m, *rooms)]
    assert not found, _offenders(found)


def test_no_circle_of_imports():
    """Imports for types alone count too: what needs each other's names belongs together."""
    names = {_name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in SOURCE}
    left = {name: {m for m in _imports(path) if m in names and m != name} for name, path in names.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    # What only leads into a circle is no part of one.
    while outer := [name for name in left if not any(name in needs for needs in left.values())]:
        for name in outer:
            del left[name]
    assert not left, "\n".join(f"{name} -> {', '.join(sorted(needs & left.keys()))}" for name, needs in left.items())


#: Packages that are optional, or that take longer to import than a command may take to answer.
LAZY = (
    "torch", "transformers", "datasets", "mlflow", "matplotlib", "sklearn", "scipy", "pandas", "huggingface_hub", "mauve",
    "sqlalchemy", "requests", "psutil", "submitit", "optuna", "yaml", "setuptools", "numpy",
)  # fmt: skip


def test_an_import_inside_a_function_is_of_a_slow_package_or_gives_its_reason():
    found = []
    for path in SOURCE:
        lines = path.read_text(encoding="utf-8").splitlines()
        for function in ast.walk(_tree(path)):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                if isinstance(node, ast.Import | ast.ImportFrom):
                    module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                    near = lines[max(0, node.lineno - 3) : node.end_lineno]
                    if not _within(module, *LAZY) and not any("#" in line for line in near):
                        found.append((path, f"line {node.lineno} imports {module}"))
    assert not found, _offenders(found)


def test_files_are_short():
    found = [(p, f"{n} lines") for p in EVERYTHING if (n := p.read_text(encoding="utf-8").count("\n")) > MAX_LINES]
    assert not found, _offenders(found)


def test_functions_are_short():
    found = [
        (path, f"{node.name} has {length} lines")
        for path in SOURCE
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef) and (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION
    ]
    assert not found, _offenders(found)


def test_no_attribute_is_probed():
    """`hasattr` of an object of ours is a missing word in its interface; of somebody else's it gives its reason."""
    found = []
    for path in SOURCE:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                near = lines[max(0, node.lineno - 3) : node.end_lineno]
                if not any("#" in line or '"""' in line for line in near):
                    found.append((path, f"line {node.lineno}"))
    assert not found, _offenders(found)


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
            # Tensors alone, unpacked by torch's own reader of weights, which runs nothing.
            if called == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords):
                called = "torch.load(weights_only=True)"
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


def test_nothing_runs_or_unpickles_what_others_wrote():
    found = [(path, what) for path in SOURCE for what in _unsafe(_tree(path))]
    assert not found, _offenders(found)


def test_the_search_for_unsafe_calls_finds_them():
    text = (
        "import pickle\nfrom joblib import load\ntorch.load(p)\neval('1')\nrun(c, shell=True)\n"
        "load(n, trust_remote_code=flag)\nnp.load(p, allow_pickle=True)\nframe.to_pickle(p)\n"
        "torch.load(p, weights_only=flag)\ntorch.load(p, weights_only=True)\n"
        "model.eval()\nnp.load(p, allow_pickle=False)\nrun(c, shell=False)\n"
    )
    assert len(_unsafe(ast.parse(text))) == 9


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


def _undescribed(path: Path) -> Iterator[str]:
    if _tree(path).body and not ast.get_docstring(_tree(path)):
        yield "no docstring on the module"
    for name, node, cls in _definitions(path):
        if not _is_public(name) or ast.get_docstring(node):
            continue
        if isinstance(node, ast.ClassDef):
            # Options are described beside their fields or by the class that they belong to.
            if not name.endswith("Options"):
                yield f"no docstring on class {name}"
        elif _statements(node) > _TRIVIAL and (cls is None or node.name not in _documented_methods()):
            yield f"no docstring on {name}"


def test_public_code_is_described():
    found = [(path, what) for path in SOURCE for what in _undescribed(path)]
    assert not found, _offenders(found)


def _untyped(path: Path) -> Iterator[str]:
    for name, node, cls in _definitions(path):
        if not isinstance(node, ast.FunctionDef) or not _is_public(name):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        is_static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
        given = given[1:] if cls is not None and not is_static else given
        yield from (
            f"no type on {name}({a.arg})" for a in given if a.annotation is None and not _is_inherited(cls, node)
        )


def test_public_functions_have_typed_parameters():
    found = [(path, what) for path in SOURCE for what in _untyped(path)]
    assert not found, _offenders(found)


def _is_inherited(cls: ast.ClassDef | None, node: ast.FunctionDef) -> bool:
    """Whether a base class of the harness declares the method with its types."""
    return cls is not None and bool(cls.bases) and node.name in _documented_methods()
