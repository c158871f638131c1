"""Which rows a study has: the samplers of each method, those of them that run, and the budgets of each.

`methods` is the tree of a resolved configuration: each method a mapping with its `samplers` by label.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from harness.errors import UserError, nearest

#: The row of held-out data, in the place of a method.
DATA_ROW = "data"


def is_plain(name: str) -> bool:
    """Whether a name can be that of a folder anywhere."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is not None


def check_names(methods: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Raise `UserError` for names of methods, samplers and metrics that cannot be parts of the names of files."""
    names = [("methods", name) for name in methods] + [("metrics", name) for name in metrics]
    names += [(f"methods.{name}.samplers", label) for name, node in methods.items() for label in node["samplers"]]
    for where, name in names:
        if not is_plain(name) or "." in name:
            raise UserError(f"{where}.{name}: is part of the names of files; use letters, digits, '_' and '-'")
    if DATA_ROW in methods:
        raise UserError(f"methods.{DATA_ROW}: is the name of the row of held-out data; choose another")
    seen: dict[str, str] = {}
    for name, labels in rows_of(methods).items():
        for label in labels:
            row = f"{name}/{label}"
            if seen.setdefault(f"{name}-{label}", row) != row:
                raise UserError(f"{row} and {seen[f'{name}-{label}']} would share their files; rename one of them")


def rows_of(methods: Mapping[str, Any], only: Sequence[str] = ()) -> dict[str, list[str]]:
    """Labels of the samplers that run, by method; `only` names methods, or single samplers as `method/sampler`.

    Raises `UserError` for a name that the study does not have.
    """
    every = {name: list(node["samplers"]) for name, node in methods.items()}
    for name in only:
        method, slash, label = name.partition("/")
        if method not in every:
            raise UserError(f"only={name}: is no method of this study{nearest(method, every)}")
        if only.count(name) > 1:
            raise UserError(f"only={name}: is named twice; name it once")
        if slash and label not in every[method]:
            raise UserError(f"only={name}: {method} has no such sampler{nearest(label, every[method])}")
    if not only:
        return every
    wanted = {
        name: [label for label in labels if name in only or f"{name}/{label}" in only] for name, labels in every.items()
    }
    return {name: labels for name, labels in wanted.items() if labels}


def budgets_of(nfe_of: Mapping[str, Any], nfe: Sequence[int], method: str, label: str) -> list[int]:
    """The budgets that a study asks of a sampler: its own, its method's, or those of all."""
    own = nfe_of.get(method)
    if isinstance(own, Mapping):
        own = own.get(label)
    return list(nfe if own is None else own)


def cut_budgets(study: dict[str, Any], running: Collection[str], typed: Collection[str]) -> list[str]:
    """Where the user has typed `study.nfe`, take larger budgets of the methods `running` out of `study.nfe_of`, in place.

    `typed` are the keys of the command line: what was typed of `nfe_of` itself stays. Returns a line for each row that
    loses some; one that loses all runs at `study.nfe`.
    """
    lines: list[str] = []

    def left(key: str, own: Any) -> Any:
        if key in typed:
            return own
        if isinstance(own, Mapping):
            return {label: kept for label, inner in own.items() if (kept := left(f"{key}.{label}", inner))}
        gone = ", ".join(str(nfe) for nfe in own if nfe > max(study["nfe"]))
        if gone:
            lines.append(
                f"{key}: {gone} left out, as study.nfe={study['nfe']} was typed; type {key}=[...] to have more"
            )
        return [nfe for nfe in own if nfe <= max(study["nfe"])]

    if "study.nfe" in typed and "study.nfe_of" not in typed:
        kept = {
            name: left(f"study.nfe_of.{name}", own) if name in running else own for name, own in study["nfe_of"].items()
        }
        study["nfe_of"] = {name: own for name, own in kept.items() if own}
    return lines


def check_budgets(nfe_of: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    """Raise `UserError` for names in `study.nfe_of` that the study does not have, and for what is no list."""
    lists: dict[str, Any] = {}
    every = rows_of(methods)
    for name, own in nfe_of.items():
        if name not in every:
            raise UserError(f"study.nfe_of.{name}: is no method of this study{nearest(name, every)}")
        for label in own if isinstance(own, Mapping) else ():
            if label not in every[name]:
                raise UserError(f"study.nfe_of.{name}.{label}: {name} has no such sampler{nearest(label, every[name])}")
        lists |= {f"{name}.{label}": v for label, v in own.items()} if isinstance(own, Mapping) else {name: own}
    for key, budgets in lists.items():
        if not isinstance(budgets, list) or not all(isinstance(k, int) for k in budgets):
            raise UserError(f"study.nfe_of.{key}={budgets}: is a list of budgets, for example [2,4,8]")
