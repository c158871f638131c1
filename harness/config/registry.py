"""Finds the configuration files under `studies/` and the classes that they name, and registers both with Hydra.

Files are read here rather than by Hydra's own search path, so that each group is merged with the `Options` dataclass of
its class (every key is typed, also those that a file leaves at their defaults) and so that a study file without its
`# @package _global_` line, which Hydra would silently put in the wrong place, is refused.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf, open_dict

from harness.config.schema import RunConfig
from harness.errors import UserError, nearest

GLOBAL_HEADER = "# @package _global_"
ROOT = "run"
#: Groups whose entries name a class.
CLASS_GROUPS = ("data", "tokenizer", "judge", "method", "metric", "sampler")

#: Groups that another command than `harness.run` chooses from, by that command.
OWN_GROUPS = {"tune": "python -m harness.tune"} | dict.fromkeys(
    ("cluster", "slurm", "wait"), "python -m harness.submit"
)


@dataclass(frozen=True)
class Entry:
    """One YAML file: `group/name`, what its first comment says, and its content."""

    group: str
    name: str
    path: Path
    about: str
    content: dict[str, Any]


def studies_folder() -> Path:
    """The `studies` package that is installed beside the harness."""
    import studies

    return Path(next(iter(studies.__path__)))


def find_entries(folders: list[Path]) -> dict[str, dict[str, Entry]]:
    """All entries by group and name; a later folder's entry replaces an earlier one's of the same name."""
    found: dict[str, dict[str, Entry]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"configuration folder '{folder}' does not exist; make it or drop --config-dir")
        for path in sorted(folder.glob("*/*.yaml")):
            entry = _read_once(path, path.stat().st_mtime_ns) if path.exists() else _read(path)
            found.setdefault(entry.group, {})[entry.name] = entry
    return found


@lru_cache(maxsize=1024)
def _read_once(path: Path, changed: int) -> Entry:
    """Files are many, and a command reads them several times."""
    return _read(path)


def _read(path: Path) -> Entry:
    group, name = path.parent.name, path.stem
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, not a {type(content).__name__}")
    is_global = text.lstrip().startswith(GLOBAL_HEADER)
    if group == "study" and not is_global:
        raise UserError(
            f"{path}: a study must begin with the line '{GLOBAL_HEADER}'; without it Hydra ignores its keys"
        )
    if group in CLASS_GROUPS and "_target_" not in content:
        raise UserError(f"{path}: names no class; a {group} needs a line such as '_target_: package.module.Class'")
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return Entry(group, name, path, comments[0] if comments else "", content)


def locate(target: str, where: str = "_target_") -> type:
    """The class at a dotted path; `UserError` says which part of the path does not exist."""
    module_name, _, class_name = str(target).rpartition(".")
    if not module_name:
        raise UserError(f"{where}={target}: not the dotted path of a class; write package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{where}={target}: cannot import '{module_name}' ({error})") from error
    if not hasattr(module, class_name):
        raise UserError(f"{where}={target}: no such class in {module_name}{nearest(class_name, vars(module))}")
    cls = getattr(module, class_name)
    if not dataclasses.is_dataclass(getattr(cls, "Options", None)):
        raise UserError(f"{where}={target}: has no dataclass 'Options', which gives a class of a study its keys")
    return cls


def build_options(node: dict[str, Any]) -> tuple[type, Any]:
    """The class that a resolved node names and an instance of its `Options` with the node's values."""
    cls = locate(node["_target_"])
    values = {k: v for k, v in node.items() if k not in ("_target_", "samplers")}
    return cls, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls.Options), values))


def _typed(entry: Entry) -> Any:
    content = dict(entry.content)
    target = content.pop("_target_")
    samplers = content.pop("samplers", {})
    cls = locate(target, f"{entry.path}: _target_")
    try:
        node = OmegaConf.merge(OmegaConf.structured(cls.Options), content)
    except Exception as error:
        reason = str(error).splitlines()[0]
        known = OmegaConf.to_container(OmegaConf.structured(cls.Options)).keys()
        wrong = next((k for k in content if k not in known), "")
        raise UserError(f"{entry.path}: {reason}{nearest(wrong, known) if wrong else ''}") from error
    with open_dict(node):
        node["_target_"] = target
        if entry.group == "method":
            node["samplers"] = samplers
    return node


def register(entries: dict[str, dict[str, Entry]], root_defaults: list[Any]) -> None:
    """Put the root schema and every entry into Hydra's store (again, where it was registered before)."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name=ROOT, node={"defaults": ["run_schema", *root_defaults, "_self_"]})
    for group, named in entries.items():
        for name, entry in named.items():
            if "_target_" in entry.content:
                store.store(group=group, name=name, node=_typed(entry))
            else:
                package = "_global_" if group == "study" else group
                store.store(group=group, name=name, node=entry.content, package=package)
