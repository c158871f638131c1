"""The arguments of a search, `tune=NAME` and `tune.KEY=VALUE`, put into the file that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.compose import leaves
from harness.config.messages import one_line
from harness.config.registry import find_entries, studies_folder
from harness.errors import UserError, nearest
from harness.search.schema import DimensionConfig, TuneConfig
from harness.tracking.uri import redact

_TUNE = "tune"
_STORAGE = "tune.storage"
#: Sections whose entries have names that a user chooses.
_NAMED = ("space", "objectives", "constraints")


def is_ours(argument: str) -> bool:
    """Whether an argument belongs to the search and not to the study."""
    return re.match(r"[+~]*tune(\.|=|@|$)", argument) is not None


def shown(argument: str) -> str:
    """The argument as it may be printed and kept: without a login."""
    is_storage = argument.lstrip("+").startswith(f"{_STORAGE}=")
    return f"{_STORAGE}=***" if is_storage and "://" not in argument else redact(argument)


def read_config(arguments: list[str], folders: list[Path]) -> TuneConfig:
    """The YAML that `tune=` names, with the other arguments put in; raises `UserError`."""
    entries = find_entries([studies_folder(), *folders]).get(_TUNE, {})
    names = [a.split("=", 1)[1] for a in arguments if a.startswith(f"{_TUNE}=")]
    if len(names) != 1:
        reason = "is given twice" if names else "is missing: it names the space that is searched"
        raise UserError(f"tune= {reason}; choose one of {', '.join(sorted(entries))}")
    if names[0] not in entries:
        raise UserError(f"tune={names[0]}: no such file in studies/tune{nearest(names[0], entries)}")
    entry = entries[names[0]]
    try:
        tree = OmegaConf.merge(OmegaConf.structured(TuneConfig), entry.content)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{entry.path}: {_in_words(error)}") from error
    for argument in arguments:
        if not argument.startswith(f"{_TUNE}="):
            tree = _changed(tree, argument)
    try:
        cfg: TuneConfig = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"{entry.path}: {_in_words(error)}") from error
    cfg.name = cfg.name or entry.name
    return cfg


def _changed(tree: DictConfig, argument: str) -> DictConfig:
    """The configuration with one argument `tune.KEY=VALUE`, or without the named part of `~tune.KEY`."""
    if argument.lstrip("+").startswith(f"{_STORAGE}="):
        # Taken as it is: a URL may hold any character, and none of it may appear in a message.
        return OmegaConf.merge(tree, {"storage": argument.split("=", 1)[1].strip("'\"")})
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise UserError(f"cannot read the argument '{argument}'; write tune.KEY=VALUE, lists as [a,b]") from error
    path = _path(tree, override.key_or_group.split(".")[1:])
    if not path or override.package or override.is_sweep_override():
        raise UserError(f"cannot read the argument '{argument}'; write tune.KEY=VALUE, lists as [a,b]")
    if override.is_delete():
        if len(path) != 2 or path[0] not in _NAMED or path[1] not in tree[path[0]]:
            names = nearest(path[-1], tree[path[0]]) if path[0] in _NAMED else ""
            raise UserError(f"{argument}: there is nothing of this name to take out{names}")
        del tree[path[0]][path[1]]
        return tree
    _need_key(tree, path)
    value: Any = override.value()
    try:
        if path[0] == "space" and len(path) == 2:  # a dimension that is given whole has nothing left of what it was
            tree.space[path[1]] = OmegaConf.merge(OmegaConf.structured(DimensionConfig), value)
            return tree
        for part in reversed(path):
            value = {part: value}
        return OmegaConf.merge(tree, value)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{argument}: {_in_words(error)}") from error


def _path(tree: DictConfig, path: list[str]) -> list[str]:
    """The parts of a key; a dimension may be named by the end of its own: `space.slots.high` for "{method}.slots"."""
    if path[:1] != ["space"] or len(path) < 2:
        return path
    for rest in (len(path), len(path) - 1):
        name = ".".join(path[1:rest])
        found = [key for key in tree.space if key == name or (name and key.endswith(f".{name}"))]
        if len(found) == 1:
            return ["space", found[0], *path[rest:]]
    return path


def _need_key(tree: DictConfig, path: list[str]) -> None:
    """Raise `UserError` unless the first part of a key exists, and with it all that is not named by users."""
    known = leaves(OmegaConf.to_container(tree))
    if path[0] == "space" and (len(path) < 2 or path[1] not in tree.space):
        tails = [key.rsplit(".", 1)[-1] for key in tree.space]
        raise UserError(f"tune.{'.'.join(path)}: no such dimension{nearest(path[1] if len(path) > 1 else '', tails)}")
    if path[0] not in _NAMED and ".".join(path) not in known:
        hint = nearest(".".join(path), known)
        hint = hint.replace("'", "'tune.", 1) if hint.startswith("; did") else "; --cfg job shows them all"
        raise UserError(f"unknown key 'tune.{'.'.join(path)}'{hint}")


def _in_words(error: Exception) -> str:
    return one_line(error) if isinstance(error, OmegaConfBaseException) else str(error).splitlines()[0]
