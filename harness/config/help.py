"""What `--help` says: groups and their choices, or every key of a section or a choice, with default, range and comment.

The comment is the one that stands beside the field in the source; there is no second text.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from harness.config.fields import default_of, rule_of
from harness.config.registry import CLASS_GROUPS, OWN_GROUPS, Entry, find_entries, locate, studies_folder
from harness.config.schema import RunConfig
from harness.errors import UserError, nearest

_NONE = (dataclasses.MISSING, "???")


def groups_text(folders: Sequence[Path]) -> str:
    """All groups with their choices, a line each."""
    lines = []
    for group, entries in sorted(find_entries([studies_folder(), *folders], typed=False).items()):
        lines += [f"  {group}" + (f" (of {OWN_GROUPS[group]})" if group in OWN_GROUPS else ""), *_choices(entries)]
    return "\n".join(lines)


def keys_text(words: Sequence[str], folders: Sequence[Path]) -> str:
    """The keys of each word: a section (`scale`), a choice (`method=seq`), a group (`method`), or `run` for the root.

    Raises `UserError` with the nearest for a word that is none.
    """
    entries = find_entries([studies_folder(), *folders])
    return "\n\n".join(_about(word, entries) for word in words)


def _about(word: str, entries: dict[str, dict[str, Entry]]) -> str:
    sections: dict[str, Any] = {n: cls for n, cls in get_type_hints(RunConfig).items() if dataclasses.is_dataclass(cls)}
    group, is_choice, name = word.partition("=")
    if is_choice and group in entries:
        if name not in entries[group]:
            raise UserError(f"{word}: no such {group}{nearest(name, entries[group])}")
        return _choice(entries[group][name])
    if not is_choice and group == "run":
        return "\n".join(["keys of the root, besides the sections " + ", ".join(sections), *_keys(RunConfig, "", {})])
    if not is_choice and group in sections:
        own = [f"choices of {group}:", *_choices(entries[group])] if group in entries else []
        return "\n".join([f"{group}: {_purpose(sections[group])}", *_keys(sections[group], f"{group}.", {}), *own])
    if not is_choice and group in entries:
        return "\n".join([f"choices of {group} (--help {group}=NAME lists keys):", *_choices(entries[group])])
    known = [*sections, *entries, *(f"{g}={n}" for g, named in entries.items() for n in named), "run"]
    raise UserError(f"--help {word}: is no section, group or choice{nearest(word, known)}")


def _choices(entries: dict[str, Entry]) -> list[str]:
    return [f"    {name:<14} {entry.about}" for name, entry in sorted(entries.items())]


def _choice(entry: Entry) -> str:
    head = f"{entry.group}={entry.name}: {entry.about}"
    if entry.group not in CLASS_GROUPS:
        return f"{head}\n{textwrap.indent(yaml.safe_dump(entry.content, sort_keys=False), '  ').rstrip()}"
    options = locate(entry.content["_target_"], f"{entry.path}: _target_").Options
    places = {"method": "methods.NAME.", "metric": "metrics.NAME.", "sampler": "methods.NAME.samplers.NAME."}
    prefix = places.get(entry.group, f"{entry.group}.")
    return "\n".join([head, *([_purpose(options)] if options.__doc__ else []), *_keys(options, prefix, entry.content)])


def _purpose(cls: type) -> str:
    """The docstring of a dataclass; not the list of fields that Python writes where there is none."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def _keys(cls: type, prefix: str, chosen: dict[str, Any]) -> list[str]:
    """A line for each field: key, value unless told, range or choices, and the comment."""
    rows, comments = [], comments_of(cls)
    width = max((len(prefix + field.name) for field in dataclasses.fields(cls)), default=0)
    for field in dataclasses.fields(cls):
        value = chosen.get(field.name, default_of(field))
        if dataclasses.is_dataclass(value):
            rows += [] if not prefix else _keys(type(value), f"{prefix}{field.name}.", {})
            continue
        rule = rule_of(field)
        shown = "(must be given)" if value in _NONE else yaml.safe_dump(value, default_flow_style=True, width=9999)
        parts = [shown.removesuffix("...\n").strip(), f"[{rule}]" if rule else "", comments.get(field.name, "")]
        rows.append(f"  {prefix + field.name:<{width}}  " + "  ".join(part for part in parts if part))
    return rows


def comments_of(cls: type) -> dict[str, str]:
    """What stands behind `#` beside each field of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                beside = " ".join(comments[line] for line in lines if line in comments)
                found |= {node.target.id: beside} if beside else {}
    return found
