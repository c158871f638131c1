"""Hashes of code: words do not count, what is imported does, and libraries are left alone."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from harness import source
from harness.source import code_of

_MODULE = '''"""Words."""
import math

from {package} import helper


class A:
    """More words."""

    value = 1  # a number


def f(x):
    """What it does."""

    return helper.g(x) + math.pi
'''


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package of somebody's own outside of this project, with a module that imports another one."""
    name = f"own_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("def g(x):\n    return 2 * x\n")
    (folder / "method.py").write_text(_MODULE.format(package=name))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for known in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[known]


def test_words_and_blank_lines_do_not_count(package):
    before = code_of([f"{package.name}.method"])
    text = (package / "method.py").read_text()
    text = text.replace("Words.", "Other\nwords.").replace("  # a number", "").replace("\n\n    return", "\n    return")
    (package / "method.py").write_text("# a licence\n" + text)
    assert code_of([f"{package.name}.method"]) == before


def test_a_change_counts_and_is_named_for_all_who_import_it(package):
    name = package.name
    before = code_of([f"{name}.method"])
    assert set(before) == {name, f"{name}.method", f"{name}.helper"}, "nothing of Python's own library"
    (package / "helper.py").write_text("def g(x):\n    return 3 * x\n")
    after = code_of([f"{name}.method"])
    assert [key for key in after if after[key] != before[key]] == [f"{name}.helper"]


def test_what_lies_beyond_is_left_out(package):
    name = package.name
    assert f"{name}.helper" not in code_of([f"{name}.method"], beyond=(f"{name}.helper",))


def test_methods_depend_on_their_own_code_and_no_library():
    code = code_of(["lddm.seq"])
    assert {"lddm.seq", "lddm.latent", "harness.diffusion.masked"} <= set(code)
    assert {name.split(".")[0] for name in code} == {"harness", "lddm"}


def test_asking_for_code_imports_no_library(monkeypatch):
    """To look for a part of a package imports the package, and some take seconds."""
    asked, find = [], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: asked.append(name) or find(name))
    for cache in (source._file, source._is_installed, source._read):
        cache.cache_clear()
    assert "harness.metrics.mauve" in code_of(["harness.metrics.mauve", "mauve.compute_mauve", "transformers.models"])
    assert not [name for name in asked if "." in name and not name.startswith(source._PACKAGES)]
