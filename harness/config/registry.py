"""Finds the configuration files under `studies/` and the classes that they name, and registers both with Hydra.

Files are read here rather than by Hydra's own search path, so that each group is merged with the `Options` dataclass of
its class (every key is typed, also those that a file leaves at their defaults) and so that a study file without its
`# @package _global_` line, which Hydra would silently put in the wrong place, is refused.
"""

from __future__ import annotations

import dataclasses
import importlib
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from harness.config.fields import check_fields
from harness.config.schema import RunConfig
from harness.config.text import keep_text, read_yaml
from harness.config.trees import merged
from harness.errors import UserError, nearest

GLOBAL_HEADER = "# @package _global_"
ROOT = "run"
#: Groups whose entries name a class.
CLASS_GROUPS = ("data", "tokenizer", "judge", "method", "metric", "sampler")

#: Sections (and groups) that other commands than `harness.run` have, by that command; what is measured is without them.
OWN_GROUPS = {"tune": "python -m harness.tune", "slurm": "python -m harness.submit", "wait": "python -m harness.submit"}


@dataclass(frozen=True, eq=False)
class Entry:
    """One YAML file as it was read: `group/name`, what its first comment says, and its content."""

    group: str
    name: str
    path: Path
    about: str
    content: dict[str, Any]


def studies_folder() -> Path:
    """The `studies` package that is installed beside the harness."""
    import studies  # a folder of YAML files that is found as a package; nothing of it is used

    return Path(next(iter(studies.__path__)))


def find_entries(folders: list[Path], typed: bool = True) -> dict[str, dict[str, Entry]]:
    """All entries by group and name; a later folder's entry replaces an earlier one's of the same name.

    Unless `typed`, no class is imported, which takes seconds, and a content may have numbers where its field is text.
    """
    found: dict[str, dict[str, Entry]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"configuration folder '{folder}' does not exist; make it or drop --config-dir")
        for path in sorted(folder.glob("*/*.yaml")):
            entry = _read_once(path, path.stat().st_mtime_ns, typed) if path.exists() else _read(path)
            found.setdefault(entry.group, {})[entry.name] = entry
    return found


@lru_cache(maxsize=1024)
def _read_once(path: Path, changed: int, typed: bool) -> Entry:
    """Files are many, and a command reads them several times."""
    return _read(path, typed)


def _read(path: Path, typed: bool = True) -> Entry:
    group, name = path.parent.name, path.stem
    text, content, as_typed = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, not a {type(content).__name__}")
    is_global = text.lstrip().startswith(GLOBAL_HEADER)
    if group == "study" and not is_global:
        raise UserError(
            f"{path}: a study must begin with the line '{GLOBAL_HEADER}'; without it Hydra ignores its keys"
        )
    if group in CLASS_GROUPS and "_target_" not in content:
        raise UserError(f"{path}: names no class; a {group} needs a line such as '_target_: package.module.Class'")
    if typed and (schema := _schema(group, content)) is not None:
        keep_text(content, as_typed, schema)
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return Entry(group, name, path, comments[0] if comments else "", content)


def _schema(group: str, content: dict[str, Any]) -> DictConfig | None:
    """The typed fields that a file of a group fills in; None for a class that is not there, which is said later."""
    if group not in CLASS_GROUPS:
        root = OmegaConf.structured(RunConfig)
        return root if group == "study" else root.get(group)
    try:
        return OmegaConf.structured(locate(content["_target_"]).Options)
    except UserError:
        return None


def locate(target: str, where: str = "_target_") -> Any:
    """The class at a dotted path; `UserError` says which part of the path does not exist."""
    module_name, _, class_name = str(target).rpartition(".")
    if not module_name:
        raise UserError(f"{where}={target}: not the dotted path of a class; write package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{where}={target}: cannot import '{module_name}' ({error})") from error
    except Exception as error:  # the module itself breaks down: it is somebody's own
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{Path(place.filename).name}, line {place.lineno}"
        said = f"{type(error).__name__}: {error}" + ("" if isinstance(error, SyntaxError) else f" ({line})")
        raise UserError(f"{where}={target}: importing '{module_name}' ends with {said}") from error
    if class_name not in vars(module):
        raise UserError(f"{where}={target}: no such class in {module_name}{nearest(class_name, vars(module))}")
    cls = getattr(module, class_name)
    if not dataclasses.is_dataclass(getattr(cls, "Options", None)):
        raise UserError(f"{where}={target}: has no dataclass 'Options', which gives a class of a study its keys")
    return cls


def build_options(node: dict[str, Any], key: str = "") -> tuple[type, Any]:
    """The class that a resolved node names and an instance of its `Options` with the node's values, in their ranges.

    `key` is the node's place in the configuration, such as `methods.seq`; raises `UserError`.
    """
    cls = locate(node["_target_"])
    values = {k: v for k, v in node.items() if k not in ("_target_", "samplers")}
    options = OmegaConf.to_object(_merged(key or str(node["_target_"]), values, OmegaConf.structured(cls.Options)))
    check_fields(options, key)
    return cls, options


def _typed(entry: Entry) -> DictConfig:
    """The content of a class's file, merged with the class's options."""
    target, samplers = entry.content["_target_"], entry.content.get("samplers", {})
    content = {key: value for key, value in entry.content.items() if key not in ("_target_", "samplers")}
    node = _merged(entry.path, content, OmegaConf.structured(locate(target, f"{entry.path}: _target_").Options))
    with open_dict(node):
        node["_target_"] = target
        if entry.group == "method":
            node["samplers"] = samplers
    return node


def _merged(where: str | Path, content: dict[str, Any], schema: DictConfig) -> DictConfig:
    """Some values in their typed fields; raises `UserError` with the name of the file or the key that they are from."""
    try:
        return merged(schema, content)
    except (OmegaConfBaseException, ValueError) as error:
        unknown = next((e for e in (error.__cause__, error) if isinstance(e, ConfigKeyError) and e.parent_node), None)
        hint = "" if unknown is None else nearest(str(unknown.key), map(str, unknown.parent_node))
        raise UserError(f"{where}: {str(error).splitlines()[0]}{hint}") from error


Stored = frozenset[tuple[tuple[str, str], Entry]]

#: What Hydra's store holds: putting a file in takes longer than all else of a load.
_STORED: dict[tuple[str, str], Entry] = {}


def registered() -> Stored:
    """What Hydra's store holds; equal while it is the same."""
    return frozenset(_STORED.items())


def register(entries: dict[str, dict[str, Entry]], root_defaults: list[Any]) -> None:
    """Put the root schema and every entry into Hydra's store, but for what is there already."""
    store = ConfigStore.instance()
    if not _STORED:
        store.store(name="run_schema", node=RunConfig)
        store.store(name=ROOT, node={"defaults": ["run_schema", *root_defaults, "_self_"]})
    for group, named in entries.items():
        for name, entry in named.items():
            if _STORED.get((group, name)) is not entry:
                _store(store, entry)
                _STORED[group, name] = entry


def _store(store: ConfigStore, entry: Entry) -> None:
    group, name = entry.group, entry.name
    if "_target_" in entry.content:
        store.store(group=group, name=name, node=_typed(entry))
        return
    if group in ("scale", "tune"):  # whose keys belong to one section, so that the file can be named
        _merged(entry.path, entry.content, OmegaConf.structured(RunConfig)[group])
    store.store(group=group, name=name, node=entry.content, package="_global_" if group == "study" else group)
