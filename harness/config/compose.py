"""Puts files and arguments together with Hydra: what a command line names, before its values are checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.messages import nearest_key, one_line
from harness.config.named import is_named, with_named
from harness.config.registry import OWN_GROUPS, ROOT, Entry, Stored, find_entries, register, registered, studies_folder
from harness.config.samplers import forced, sets_sampler
from harness.config.text import quoted
from harness.errors import UserError, nearest
from harness.tracking.uri import redact

#: Groups that every run chooses from, with what they choose unless told.
ROOT_DEFAULTS: list[Any] = [{"study": "few_step"}, {"tune": None}]
#: Values with a login, of any characters: taken as they are. So is a path below the home folder.
_URLS = ("tune.storage", "tracking.uri")
#: Sections whose entries have names that a user chooses; new ones of the last need no '+'.
_OPEN = ("methods.", "metrics.", "study.tasks.", "study.nfe_of.", "slurm.more.")
_NEW = _OPEN[-1]

Entries = dict[str, dict[str, Entry]]


def leaves(tree: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a nested mapping, inner nodes too."""
    keys: list[str] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        keys.append(name)
        if isinstance(value, dict):
            keys.extend(leaves(value, name + "."))
    return keys


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to leaf value; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def entries_of(config_dirs: Sequence[Path] | None) -> Entries:
    """All files by group and name, known to Hydra; raises `UserError`."""
    entries = find_entries([studies_folder(), *(config_dirs or [])])
    register(entries, ROOT_DEFAULTS)
    return entries


def composed(parsed: list[Any], entries: Entries, own: Sequence[str] = ()) -> DictConfig:
    """All groups and values put together; raises `UserError` for names of groups, choices or keys that do not exist.

    `own` are the sections of `OWN_GROUPS` that the command has.
    """
    for o in parsed:
        section = o.key_or_group.strip("/").split(".")[0]
        if section in OWN_GROUPS and section not in own:
            raise UserError(f"unknown key '{o.key_or_group}'; it belongs to {OWN_GROUPS[section]}")
    groups = [o for o in parsed if is_group(o, entries)]
    for o in groups:
        group, choice = o.key_or_group.strip("/"), o.value()
        if not isinstance(choice, str) or choice not in entries[group]:
            raise UserError(f"{o.key_or_group}={choice}: no such {group}{nearest(str(choice), entries[group])}")
    config = compose_lines([o.input_line for o in groups])
    named = [o for o in parsed if is_named(o)]
    values = [o for o in parsed if o not in groups and o not in named]
    _check_keys(values, config, entries)
    put(values, config)
    config.tune = with_named(config.tune, named)
    if "tune" in own:
        _name_search(config, groups, entries)
    return config


def _check_keys(values: list[Any], base: DictConfig, entries: Entries) -> None:
    known = leaves(OmegaConf.to_container(base, resolve=False))
    for o in values:
        key, is_open = o.key_or_group, o.key_or_group.startswith(_OPEN)
        # Options of a sampler are checked where its class is known.
        there = key.split(".samplers.")[0] if o.is_force_add() and sets_sampler(key) else key
        if not o.is_add() and there not in known and not key.startswith(_NEW):
            new = f"; a new budget is written +{o.input_line}" if key.startswith("study.nfe_of.") else ""
            raise UserError(f"unknown key '{key}'{new or nearest_key(key, known, entries)}")
        if o.is_add() and not is_open:
            raise UserError(f"+{key}: nothing reads this key{nearest_key(key, known, entries)}")
        if o.is_delete() and not is_open:
            raise UserError(
                f"~{key}: is read by every run; give it a value, or take out an entry, such as ~methods.NAME"
            )


def _name_search(config: DictConfig, groups: list[Any], entries: Entries) -> None:
    """A search is called as its file unless `tune.name` says otherwise; there must be one."""
    chosen = [o.value() for o in groups if o.key_or_group.strip("/") == "tune"]
    if not chosen:
        names = ", ".join(sorted(entries.get("tune", {})))
        raise UserError(f"tune= is missing: it names the space that is searched; choose one of {names}")
    config.tune.name = config.tune.name or chosen[0]


def put(overrides: list[Any], config: DictConfig) -> None:
    """Set the values of parsed arguments in `config`, as Hydra does once it has composed; raises `UserError`.

    Composing takes a second. What is set is text where a key's field is text.
    """
    try:
        ConfigLoaderImpl._apply_overrides_to_config(parse([_as_text(o, config) for o in overrides]), config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error


def _as_text(override: Any, config: DictConfig) -> str:
    """The line of a parsed argument `key=value`, quoted where the key's field in `config` is text."""
    if override.is_delete():
        return override.input_line
    line = quoted(override.input_line, override.value(), config)
    return f"++{line.lstrip('+')}" if override.key_or_group.startswith(_NEW) else line


def parse(arguments: Sequence[str]) -> list[Any]:
    """The arguments as Hydra reads them; raises `UserError` with no login in it."""
    parser = OverridesParser.create()
    parsed = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_url = key.lstrip("+") in _URLS and value != "null" and value[:1] not in ("'", '"')
        if is_url or value.startswith("~"):
            value = value.replace("'", "\\'")
            argument = f"{key}='{value}'"  # noqa: PLW2901
        try:
            parsed.append(parser.parse_override(forced(argument)))
        except HydraException as error:
            hint = "; write key=value" if "=" not in argument else "; quote values with special characters"
            raise UserError(f"cannot read the argument '{redact(argument)}'{hint}") from error
        if parsed[-1].is_sweep_override():
            raise UserError(
                f"cannot read the argument '{redact(argument)}': lists are written [a,b], sweeps are for studies"
            )
    return parsed


def is_group(override: Any, entries: Entries) -> bool:
    """Whether an override chooses from a group, and does not set a value; '/' and '@package' are Hydra's."""
    return override.key_or_group.strip("/") in entries and not isinstance(override.value(), dict)


def compose_lines(overrides: list[str]) -> DictConfig:
    """What Hydra makes of these arguments; raises `UserError`."""
    return copy.deepcopy(_composed_once(tuple(overrides), registered()))


@lru_cache(maxsize=32)
def _composed_once(overrides: tuple[str, ...], files: Stored) -> DictConfig:
    """Composing takes most of the time of a load, and the tasks of a suite, or trials, choose the same files."""
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            return compose(config_name=ROOT, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # `study=null`
        raise UserError(one_line(error)) from error
    except RecursionError as error:
        said = " ".join(overrides)
        raise UserError(f"{said}: its list 'defaults' leads back to itself; take that line out") from error
