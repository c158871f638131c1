"""Arguments about parts of a search that have names of their own: `tune.space.slots.high=8`, `~tune.constraints.spread`.

A dimension's name is a key of the configuration with dots in it, so that Hydra could not tell where it ends; it may be
named by its own end, `slots` for "{method}.slots".
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.messages import one_line
from harness.errors import UserError, nearest
from harness.search.schema import DimensionConfig

_NAMED = ("space", "objectives", "constraints")


def is_named(override: Any) -> bool:
    """Whether a parsed argument is about such a part."""
    first, _, rest = override.key_or_group.partition(".")
    return first == "tune" and rest.split(".")[0] in _NAMED


def with_named(tune: DictConfig, overrides: list[Any]) -> DictConfig:
    """The section `tune` with each of the arguments put in, or the part taken out; raises `UserError`."""
    OmegaConf.set_struct(tune, False)
    for override in overrides:
        section, *rest = override.key_or_group.split(".")[1:]
        name, path = _split(tune[section], rest)
        known = [key.rsplit(".", 1)[-1] for key in tune[section]]
        if override.is_delete():
            if path or name not in tune[section]:
                raise UserError(
                    f"{override.input_line}: there is nothing of this name to take out{nearest(name, known)}"
                )
            del tune[section][name]
            continue
        if not name or (section == "space" and name not in tune[section]):
            raise UserError(f"{override.input_line}: no such part of tune.{section}{nearest(name, known)}")
        value: Any = override.value()
        for part in reversed(path):
            value = {part: value}
        try:
            if section == "space" and not path:  # a dimension that is given whole has nothing left of what it was
                tune.space[name] = OmegaConf.merge(OmegaConf.structured(DimensionConfig), value)
            else:
                tune = OmegaConf.merge(tune, {section: {name: value}})
        except (OmegaConfBaseException, ValueError) as error:
            reason = one_line(error) if isinstance(error, OmegaConfBaseException) else str(error).splitlines()[0]
            raise UserError(f"{override.input_line}: {reason}") from error
    return tune


def _split(parts: DictConfig, path: list[str]) -> tuple[str, list[str]]:
    """The name of a part, in full, and what follows it."""
    for end in (len(path), len(path) - 1):
        name = ".".join(path[:end])
        found = [key for key in parts if key == name or (name and key.endswith(f".{name}"))]
        if len(found) == 1:
            return found[0], path[end:]
    return (path[0], path[1:]) if path else ("", [])
