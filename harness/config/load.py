"""Turns a command line in Hydra's syntax into a checked `RunConfig`, or into one line that says what is wrong with it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from harness.config.registry import ROOT, Entry, find_entries, register, studies_folder
from harness.config.schema import RunConfig, check, check_tasks
from harness.errors import UserError, nearest

#: Groups that every run chooses from, with what they choose unless told.
ROOT_DEFAULTS: list[Any] = [
    {"study": "few_step"},
]


#: Keys younger than the first results. At these values they are left out of the tree, and with it out of the identity
#: of results, so that a study that does not use them is the one that it was before there were such keys.
_YOUNG: dict[tuple[str, ...], Any] = {
    ("study", "unmet"): "refuse",
    ("study", "tasks"): {},
    ("study", "nfe_of"): {},
    ("only_tasks",): [],
}
#: What a task of a study may not set: it belongs to the study as a whole.
_NOT_IN_TASKS = ("study.name", "study.tasks", "only_tasks", "plan", "runs_dir", "tracking")


@dataclass(frozen=True)
class Loaded:
    """The resolved configuration as plain containers (`tree`) and as typed objects (`cfg`)."""

    cfg: RunConfig
    tree: dict[str, Any]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class LoadedSuite:
    """A study with tasks: `parts` are the chosen ones as studies of their own, called `<study>/<task>`.

    `others` are the tasks that were not chosen, as far as they compose: their results may be there already.
    """

    name: str
    question: str
    order: tuple[str, ...]  # of all tasks
    parts: dict[str, Loaded]
    others: dict[str, Loaded]


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


def load(arguments: list[str], config_dirs: list[Path] | None = None) -> Loaded:
    """Compose and check the configuration of one study (its tasks, if it has any, aside); raises `UserError`."""
    entries = _entries(config_dirs)
    return _checked(_composed(_parse(arguments), entries), arguments)


def load_suite(arguments: list[str], config_dirs: list[Path] | None = None) -> LoadedSuite | None:
    """Compose and check all chosen tasks of a study, or None where it has no `study.tasks`; raises `UserError`.

    A task's overrides come before those of the command line, which win.
    """
    entries = _entries(config_dirs)
    parsed = _parse(arguments)
    # Other keys may be of data or methods that only some task chooses; they are checked with each task.
    own = [o for o in parsed if o.key_or_group.split(".")[0] in ("study", "only_tasks")]
    try:
        base = _compose([o.input_line for o in own])
    except UserError:
        base = _composed(own, entries)  # slower, and says what is wrong in the words of this file
    try:
        study = OmegaConf.to_container(base.study, resolve=True)
        only = [str(name) for name in base.only_tasks]
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    if not study["tasks"]:
        return None
    check_tasks(study["name"], list(study["tasks"]), only)
    parts, others = {}, {}
    for task, overrides in study["tasks"].items():
        try:
            loaded = _load_task(f"{study['name']}/{task}", overrides, parsed, entries)
        except UserError as error:
            if task in only or not only:
                raise UserError(f"task {task}: {error}") from error
            continue
        (parts if task in only or not only else others)[task] = loaded
    return LoadedSuite(study["name"], study["question"], tuple(study["tasks"]), parts, others)


def _load_task(name: str, overrides: list[str], users: list[Any], entries: dict[str, dict[str, Entry]]) -> Loaded:
    """One task as a study called `name`: its overrides, but for those that the user's replace, then the user's."""
    given = {(o.key_or_group.strip("/"), o.package) for o in users}
    mine = _parse([str(o) for o in overrides])
    for o in mine:
        key = o.key_or_group.strip("/")
        if key == "study" or any(key == k or key.startswith(f"{k}.") for k in _NOT_IN_TASKS):
            raise UserError(f"{o.input_line}: belongs to the study as a whole; take it out of study.tasks")
    parsed = [*(o for o in mine if (o.key_or_group.strip("/"), o.package) not in given), *users]
    loaded = _checked(_composed(parsed, entries), [o.input_line for o in parsed])
    tree = loaded.tree
    tree["tracking"]["experiment"] = tree["tracking"]["experiment"] or tree["study"]["name"]
    tree["study"]["name"] = name
    tree["study"].pop("tasks", None)
    tree.pop("only_tasks", None)
    cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), tree))
    return Loaded(cfg, tree, loaded.overrides)


def _entries(config_dirs: list[Path] | None) -> dict[str, dict[str, Entry]]:
    entries = find_entries([studies_folder(), *(config_dirs or [])])
    register(entries, ROOT_DEFAULTS)
    return entries


def _composed(parsed: list[Any], entries: dict[str, dict[str, Entry]]) -> DictConfig:
    """All groups and values put together; raises `UserError` for names of groups, choices or keys that do not exist."""
    groups = [o for o in parsed if _group_of(o, entries) is not None]
    for o in groups:
        group, choice = _group_of(o, entries), o.value()
        if not isinstance(choice, str) or choice not in entries[group]:
            raise UserError(f"{o.key_or_group}={choice}: no such {group}{nearest(str(choice), entries[group])}")
    base = _compose([o.input_line for o in groups])
    known = leaves(OmegaConf.to_container(base, resolve=False))
    for o in parsed:
        if o in groups or o.is_add():
            continue
        if o.key_or_group not in known:
            raise UserError(f"unknown key '{o.key_or_group}'{_nearest_key(o.key_or_group, known, entries)}")
    for o in parsed:
        open_ended = o.key_or_group.split(".")[0] in ("methods", "metrics") or o.key_or_group.startswith(
            ("study.tasks.", "study.nfe_of.")
        )
        if o.is_add() and o not in groups and not open_ended:
            raise UserError(f"+{o.key_or_group}: nothing reads this key{_nearest_key(o.key_or_group, known, entries)}")
    return _compose([o.input_line for o in parsed])


def _checked(tree_cfg: DictConfig, arguments: list[str]) -> Loaded:
    """The values of a composed configuration, resolved, complete and possible; raises `UserError`."""
    try:
        missing = sorted(OmegaConf.missing_keys(tree_cfg))
        if missing:
            raise UserError(f"{missing[0]} has no value; give it as {missing[0]}=...")
        cfg = OmegaConf.to_object(tree_cfg)
        tree = OmegaConf.to_container(tree_cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    _check_classes(tree)
    check(cfg)
    for path, value in _YOUNG.items():
        node = tree[path[0]] if len(path) > 1 else tree
        if node[path[-1]] == value:
            del node[path[-1]]
    return Loaded(cfg, tree, tuple(arguments))


def _check_classes(tree: dict[str, Any]) -> None:
    """Every node that stands for an object must still name its class: `methods.seq=3` has the right type for Hydra."""
    several = (("methods", "method"), ("metrics", "metric"))
    nodes = [(key, key, tree[key]) for key in ("data", "tokenizer", "judge")]
    nodes += [(f"{key}.{name}", group, node) for key, group in several for name, node in tree[key].items()]
    for key, group, node in nodes:
        if not isinstance(node, dict) or "_target_" not in node:
            way = f"{group}@{key}=NAME (with '+' in front if it is new)" if "." in key else f"{key}=NAME"
            raise UserError(f"{key}={node}: names no class; choose one with {way}; --help lists the names")


def _parse(arguments: list[str]) -> list[Any]:
    parser = OverridesParser.create()
    parsed = []
    for argument in arguments:
        try:
            parsed.append(parser.parse_override(argument))
        except HydraException as error:
            hint = "; write key=value" if "=" not in argument else "; quote values with special characters"
            raise UserError(f"cannot read the argument '{argument}'{hint}") from error
        if parsed[-1].is_sweep_override():
            raise UserError(f"cannot read the argument '{argument}': lists are written [a,b], sweeps are for studies")
    return parsed


def _group_of(override: Any, entries: dict[str, dict[str, Entry]]) -> str | None:
    """The group that an override chooses from, or None where it sets a value; '/' and '@package' are Hydra's."""
    name = override.key_or_group.strip("/")
    return name if name in entries and not isinstance(override.value(), dict) else None


def _compose(overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            return compose(config_name=ROOT, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """Hydra and OmegaConf put the reason on the first lines and the key on a later one; people need both on one."""
    text = str(error)
    cause = error.__cause__ or error.__context__
    if cause is not None and isinstance(cause, OmegaConfBaseException):
        text = f"{text}\n{cause}"
    lines = [line.strip() for line in text.partition("\nConfig search path:")[0].splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    kept = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))
    ]
    message = "; ".join(dict.fromkeys(kept))
    if "is not a ListConfig" in message:
        message += " Lists are written [a,b]."
    unknown = next((e for e in (cause, error) if isinstance(e, ConfigKeyError) and e.parent_node is not None), None)
    if unknown is not None:
        message += nearest(str(unknown.key), map(str, unknown.parent_node))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        message += nearest(name, [c.removesuffix(".yaml") for c in ConfigStore.instance().list(group)])
    return f"{key}: {message}" if key and key not in message else message


def _nearest_key(key: str, known: list[str], entries: dict[str, dict[str, Entry]]) -> str:
    """Nearest among the keys, by full name first and then by the last part alone."""
    hint = nearest(key, [*known, *entries])
    if hint.startswith("; did"):
        return hint
    tails = {k.rsplit(".", 1)[-1]: k for k in known}
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], tails, n=1, cutoff=0.75)
    if close:
        return f"; did you mean '{tails[close[0]]}'?"
    return "; --help lists the groups and --cfg job every key"
