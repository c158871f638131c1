"""By which code each part of a cell is made: the commit, and hashes of the modules that the numbers depend on.

What is stored with a part (`made_by`) is compared with what is there now (`changed`): results of edited code are never mixed
with those of the code before.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

from harness.provenance import git_state, package_versions
from harness.source import code_of
from harness.study.cells import Cell, Weights
from harness.study.session import Session

#: What only carries or shows numbers. Data stands in every identity by its content, and a judge by its weights.
_SILENT = (
    "harness.config",
    "harness.data",
    "harness.errors",
    "harness.jobs",
    "harness.parts",
    "harness.progress",
    "harness.provenance",
    "harness.search",
    "harness.source",
    "harness.store",
    "harness.study.cells",
    "harness.study.made",
    "harness.study.session",
    "harness.training.log",
)
#: The harness's own part of a step, and what its modules bring along that has no part in it.
_OWN = {"train": ("harness.study.fit",), "sample": ("harness.study.sampling", "harness.study.bound")}
_BEYOND = {
    "train": (*_SILENT, "harness.judges", "harness.metrics"),
    "sample": (
        *_SILENT,
        "harness.judges",
        "harness.metrics",
        *(
            f"harness.training.{name}"
            for name in ("loop", "checkpoint", "batches", "distributed", "shards", "statistics")
        ),
    ),
    "score": (*_SILENT, "harness.training"),
}


def code_behind(session: Session, step: str, cell: Cell | Weights) -> dict[str, str]:
    """Hashes by module of the code that the step depends on."""
    return row_code(session, step, cell.method, cell.sampler if isinstance(cell, Cell) else "")


def row_code(session: Session, step: str, method: str, sampler: str) -> dict[str, str]:
    """The same by names; the data are not read."""
    if step == "score":
        modules = [type(part).__module__ for part in (*session.metrics, session.judge)]
    else:
        modules = [*_OWN[step], *session.modules(method, sampler if step == "sample" else "")]
    return _code(tuple(modules), _BEYOND[step])


@cache
def _code(modules: tuple[str, ...], beyond: tuple[str, ...]) -> dict[str, str]:
    """Kept for the process, which goes on with what it has loaded when a file is edited."""
    return code_of(modules, beyond)


@cache
def _commit() -> str:
    return git_state().label


def made_by(session: Session, step: str, cell: Cell | Weights, of: str = "") -> dict[str, Any]:
    """What is stored with what a step makes; `of` is the hash of what it was made from."""
    numerics = session.numerics
    return {
        "commit": _commit(),
        "code": code_behind(session, step, cell),
        "of": of,
        "device": numerics.device.split(":")[0],
        "dtype": numerics.precision,
        "python": platform.python_version(),
        "torch": package_versions(("torch",))["torch"],
    }


def changed(session: Session, step: str, cell: Cell | Weights, made: dict[str, Any]) -> list[str]:
    """Modules that are not as they were when the step made this, by name; those that came or went as well."""
    return differing(code_behind(session, step, cell), made["code"])


def differing(now: dict[str, str], before: dict[str, str]) -> list[str]:
    """Modules whose hashes differ, or that only one of the two has."""
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
