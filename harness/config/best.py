"""`+best=PATH` on a command line: the overrides that a search ended with, in the place of that argument.

The file is what `harness.tune` writes as `best.yaml`: a mapping with `overrides`, a list of `key=value`. They come before
the other arguments, which win; the overrides of a study's task come before both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError

_NAMES = ("+best=", "best=")
#: What a search does not choose: it belongs to the command. Of the sections nothing, of the study its keys.
_NOT_HERE = ("study", "best", "only", "only_tasks", "plan", "runs_dir", "cache_dir", "redo", "stale")
_SECTIONS = ("tracking", "slurm", "wait", "tune", "hydra")
#: What would import a class, or read the environment: the file holds values, and may be somebody else's.
_CODE = ("_target_", "${")


def read_best(path: Path) -> dict[str, Any]:
    """The content of a `best.yaml` with its list of `overrides`; raises `UserError` where it is not one."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"+best={path}: {(error.strerror or 'cannot be read').lower()}{_beside(Path(path))}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"+best={path}: is not YAML; give the best.yaml that harness.tune wrote") from None
    overrides = content.get("overrides") if isinstance(content, dict) else None
    if not isinstance(overrides, list) or not all(isinstance(o, str) and "=" in o for o in overrides):
        raise UserError(
            f"+best={path}: has no list 'overrides' of key=value; give the best.yaml that harness.tune wrote"
        )
    for override in overrides:
        key = key_of(override).strip("/").split("@")[0]
        if key in _NOT_HERE or key.split(".")[0] in _SECTIONS or any(word in override for word in _CODE):
            raise UserError(f"+best={path}: {override} is not for this file; write it on the command line")
    return content


def _beside(path: Path) -> str:
    """A hint where the path is a folder that holds one."""
    inside = path / "best.yaml"
    return f"; did you mean '{inside}'?" if inside.is_file() else "; harness.tune writes best.yaml at its end"


def key_of(override: str) -> str:
    """The key or group that an argument `key=value` is about."""
    return override.split("=", 1)[0].lstrip("+~").strip()


@contextmanager
def best_in(arguments: list[str]) -> Iterator[list[str]]:
    """The arguments with `+best=PATH` replaced; an error about a key that the file sets names the file as well.

    What the other arguments set themselves is left out, since a group cannot be chosen twice. Raises `UserError` for a
    file that cannot be read and where two are given.
    """
    paths = [os.path.expanduser(a.split("=", 1)[1].strip("'\"")) for a in arguments if a.startswith(_NAMES)]
    rest = [a for a in arguments if not a.startswith(_NAMES)]
    if not paths:
        yield rest
        return
    if len(paths) > 1:
        raise UserError(f"+best={paths[1]}: one file is read, and +best={paths[0]} was given before it")
    taken = {key_of(a) for a in rest}
    overrides = [o for o in read_best(Path(paths[0]))["overrides"] if key_of(o) not in taken]
    try:
        yield [*overrides, *rest]
    except UserError as error:
        if any(key_of(o) in str(error) for o in overrides):
            raise UserError(f"{error} (set by +best={paths[0]})") from error
        raise
