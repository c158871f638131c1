"""Turns a command line in Hydra's syntax into a checked `RunConfig`, or into one line that says what is wrong with it."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.best import best_in
from harness.config.compose import Entries, compose_lines, composed, entries_of, is_group, parse, put
from harness.config.messages import one_line
from harness.config.registry import OWN_GROUPS, Entry, build_options
from harness.config.rows import cut_budgets, rows_of
from harness.config.samplers import resolve_samplers
from harness.config.schema import RunConfig, check, check_tasks
from harness.config.trees import plain, typed
from harness.errors import UserError
from harness.tracking.uri import redact

#: What a task of a study may not set: it belongs to the study as a whole.
_NOT_IN_TASKS = ("study.name", "study.tasks", "only_tasks", "plan", "runs_dir", "tracking")


@dataclass(frozen=True)
class Loaded:
    """The resolved configuration as plain containers (`tree`) and as typed objects (`cfg`).

    The tree is what is written, shown and handed on: `tracking.uri` is without its login there.
    """

    cfg: RunConfig
    tree: dict[str, Any]
    overrides: tuple[str, ...]
    notes: tuple[str, ...] = ()  # lines about what was changed so that what the user typed holds


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


def load(arguments: list[str], config_dirs: list[Path] | None = None, sections: Sequence[str] = ()) -> Loaded:
    """Compose and check the configuration of one study (its tasks, if it has any, aside); raises `UserError`.

    `sections` are those of other commands than `harness.run` that the arguments may set: `tune`, `slurm`, `wait`.
    """
    entries = entries_of(config_dirs)
    with best_in(arguments) as arguments:
        parsed = parse(arguments)
        return _checked(composed(parsed, entries, sections), arguments, entries["sampler"], _keys(parsed))


def load_suite(
    arguments: list[str], config_dirs: list[Path] | None = None, sections: Sequence[str] = ()
) -> LoadedSuite | None:
    """Compose and check all chosen tasks of a study, or None where it has no `study.tasks`; raises `UserError`.

    A task's overrides come before those of the command line, which win.
    """
    with best_in(arguments) as arguments:
        return _load_suite(parse(arguments), entries_of(config_dirs), sections)


def load_draft(arguments: list[str], config_dirs: list[Path] | None = None, sections: Sequence[str] = ()) -> Draft:
    """A study without tasks, or the one chosen task of a study that has some, not resolved yet; raises `UserError`."""
    entries = entries_of(config_dirs)
    with best_in(arguments) as arguments:
        parsed = parse(arguments)
        study, only = _study_and_choice(parsed, entries)
        if not study["tasks"]:
            return Draft(composed(parsed, entries, sections), tuple(arguments), entries["sampler"])
        check_tasks(study["name"], list(study["tasks"]), only)
        if len(only) != 1:
            task = next(iter(study["tasks"]))
            raise UserError(f"study={study['name']} has tasks: choose one of them, for example only_tasks=[{task}]")
        parsed = _with_task(study["tasks"][only[0]], parsed)
        lines = tuple(o.input_line for o in parsed)
        try:
            return Draft(composed(parsed, entries, sections), lines, entries["sampler"], f"{study['name']}/{only[0]}")
        except UserError as error:
            raise UserError(f"task {only[0]}: {error}") from error


@dataclass(frozen=True)
class Draft:
    """A composed configuration whose values may still change; composing takes most of the time of loading.

    `name` is that of a task as a study, `<study>/<task>`; empty: it is no task.
    """

    config: DictConfig
    overrides: tuple[str, ...]
    samplers: Mapping[str, Entry]
    name: str = ""

    def loaded(self, more: list[str] | None = None) -> Loaded:
        """What `load` gives with `more` arguments `key=value` after all others, checked; keys that exist, no groups.

        Raises `UserError`.
        """
        config = copy.deepcopy(self.config)
        parsed = parse(more or [])
        for o in parsed:
            if o.is_add() or o.is_delete() or o.package:
                raise UserError(f"{o.input_line}: only values can change here; write key=value")
        put(parsed, config)
        lines = [*self.overrides, *(more or [])]
        checked = _checked(config, lines, self.samplers)
        return _as_task(checked, self.name) if self.name else checked


def _study_and_choice(parsed: list[Any], entries: Entries) -> tuple[dict[str, Any], list[str]]:
    """The section `study`, and which of its tasks are chosen."""
    # Other keys may be of data or methods that only some task chooses; they are checked with each task.
    own = [o for o in parsed if o.key_or_group.split(".")[0] in ("study", "only_tasks")]
    try:
        groups = [o for o in own if is_group(o, entries)]
        base = compose_lines([o.input_line for o in groups])
        put([o for o in own if o not in groups], base)
    except UserError:
        base = composed(own, entries)  # slower, and says what is wrong in the words of this file
    try:
        return plain(base.study), [str(name) for name in base.only_tasks]
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error


def _load_suite(parsed: list[Any], entries: Entries, sections: Sequence[str]) -> LoadedSuite | None:
    study, only = _study_and_choice(parsed, entries)
    if not study["tasks"]:
        return None
    check_tasks(study["name"], list(study["tasks"]), only)
    parts, others = dict[str, Loaded](), dict[str, Loaded]()
    for task, overrides in study["tasks"].items():
        try:
            mine = _with_task(overrides, parsed)
            lines = [o.input_line for o in mine]
            loaded = _checked(composed(mine, entries, sections), lines, entries["sampler"], _keys(parsed))
        except UserError as error:
            if task in only or not only:
                raise UserError(f"task {task}: {error}") from error
            continue
        (parts if task in only or not only else others)[task] = _as_task(loaded, f"{study['name']}/{task}")
    return LoadedSuite(study["name"], study["question"], tuple(study["tasks"]), parts, others)


def _keys(parsed: list[Any]) -> set[str]:
    return {o.key_or_group for o in parsed}


def _with_task(overrides: list[str], users: list[Any]) -> list[Any]:
    """The overrides of a task, but for those that the user's replace, then the user's.

    Raises `UserError` where the user chooses other data than the task's, which would be that task in name only.
    """
    given = {(o.key_or_group.strip("/"), o.package): o for o in users}
    mine = parse([str(o) for o in overrides])
    for o in mine:
        key = o.key_or_group.strip("/")
        if key == "study" or any(key == k or key.startswith(f"{k}.") for k in _NOT_IN_TASKS):
            raise UserError(f"{o.input_line}: belongs to the study as a whole; take it out of study.tasks")
        other = given.get((key, o.package))
        if key == "data" and other is not None and other.value() != o.value():
            raise UserError(
                f"{other.input_line}: the task has {o.input_line}; choose another with only_tasks, or leave it out"
            )
    return [*(o for o in mine if (o.key_or_group.strip("/"), o.package) not in given), *users]


def _as_task(loaded: Loaded, name: str) -> Loaded:
    """The same, called `name` and without what is the whole study's."""
    cfg, tree = loaded.cfg, loaded.tree
    cfg.tracking.experiment = tree["tracking"]["experiment"] = tree["tracking"]["experiment"] or tree["study"]["name"]
    cfg.study.name = tree["study"]["name"] = name
    cfg.study.tasks, cfg.only_tasks = {}, []
    tree["study"].pop("tasks", None)
    tree.pop("only_tasks", None)
    return loaded


def _checked(
    tree_cfg: DictConfig, arguments: Sequence[str], samplers: Mapping[str, Entry], typed_keys: Collection[str] = ()
) -> Loaded:
    """The values of a composed configuration, resolved, complete and possible; raises `UserError`.

    `typed_keys` are those of the command line, which win over budgets of single rows that files have.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(tree_cfg))
        if missing:
            raise UserError(f"{missing[0]} has no value; give it as {missing[0]}=...")
        tree = plain(tree_cfg)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    _check_classes(tree)
    resolve_samplers(tree["methods"], samplers)
    tree = _at_home(tree)
    cfg = typed(RunConfig, tree)
    check(cfg)
    notes = cut_budgets(tree["study"], rows_of(tree["methods"], cfg.only), typed_keys)
    cfg = typed(RunConfig, tree) if notes else cfg
    if cfg.tracking.uri:
        tree["tracking"]["uri"] = redact(cfg.tracking.uri)
    for section in OWN_GROUPS:
        del tree[section]  # no part of what is measured
    return Loaded(cfg, tree, tuple(arguments), tuple(notes))


def _at_home(node: Any) -> Any:
    """The same with every `~` at the beginning of a text written out: one rule for the paths of all sections and classes."""
    if isinstance(node, dict):
        return {key: _at_home(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_at_home(value) for value in node]
    return os.path.expanduser(node) if isinstance(node, str) else node


def _check_classes(tree: dict[str, Any]) -> None:
    """Every node that stands for an object names its class (`methods.seq=3` has the right type) and possible options."""
    several = (("methods", "method"), ("metrics", "metric"))
    nodes = [(key, key, tree[key]) for key in ("data", "tokenizer", "judge")]
    nodes += [(f"{key}.{name}", group, node) for key, group in several for name, node in tree[key].items()]
    for key, group, node in nodes:
        if not isinstance(node, dict) or "_target_" not in node:
            way = f"{group}@{key}=NAME (with '+' in front if it is new)" if "." in key else f"{key}=NAME"
            raise UserError(f"{key}={node}: names no class; choose one with {way}; --help lists the names")
        build_options(node, key)
