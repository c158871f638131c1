"""Samplers of a method in the configuration: `methods.seq.samplers.one_call`.

The key is a label. What it stands for is the entry of `studies/sampler/` of that name, or of the name that its key
`sampler` gives, so that one sampler may stand there twice with other options:
`samplers: {top_p: {}, tight: {sampler: top_p, p: 0.5}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.fields import check_fields
from harness.config.registry import Entry, locate
from harness.config.trees import merged, plain
from harness.errors import UserError, nearest

_KEY = re.compile(r"methods\.[^.=]+\.samplers\.")


def forced(argument: str) -> str:
    """An argument that sets an option of a sampler, with the `++` by which Hydra also adds it where it is not there yet."""
    return f"++{argument}" if sets_sampler(argument) else argument


def sets_sampler(key: str) -> bool:
    """Whether a key (or an argument that begins with it) is one of a sampler."""
    return _KEY.match(key) is not None


def resolve_samplers(methods: dict[str, Any], entries: Mapping[str, Entry]) -> None:
    """Put class and all options of each sampler into the tree `methods`, in place; raises `UserError`."""
    for name, node in methods.items():
        given = node.get("samplers")
        where = f"methods.{name}.samplers"
        if not isinstance(given, dict) or not given:
            raise UserError(
                f"{where}={given}: names no sampler; write {where}.NAME={{}} with one of {', '.join(entries)}"
            )
        node["samplers"] = {label: _resolved(f"{where}.{label}", label, own, entries) for label, own in given.items()}


def _resolved(where: str, label: str, own: Any, entries: Mapping[str, Entry]) -> dict[str, Any]:
    if own is not None and not isinstance(own, dict):
        raise UserError(f"{where}={own}: is a mapping of options, {{}} where there are none")
    values = dict(own or {})
    kind = values.pop("sampler", label)
    if "_target_" not in values:
        if kind not in entries:
            raise UserError(f"{where}: there is no sampler '{kind}'{nearest(str(kind), entries)}")
        values = dict(entries[kind].content) | values
    target = values.pop("_target_")
    known = OmegaConf.structured(locate(target, f"{where}._target_").Options)
    wrong = next((key for key in values if key not in known), None)
    if wrong is not None:
        raise UserError(f"{where}.{wrong}: sampler {kind} has no such option{nearest(wrong, map(str, known))}")
    try:
        options = merged(known, values)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    check_fields(OmegaConf.to_object(options), where)
    return {"_target_": target, **plain(options)}
