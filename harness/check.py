"""Put a method, sampler or metric of your own to the contract: `python -m harness.check --config-dir mine method=local`.

A method is checked with the samplers of its YAML; a sampler on the method that is named, or on the first that it draws from.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import cli
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.config.compose import Entries
    from harness.contracts.world import Check
    from harness.study.outcome import Outcome

_GROUPS = ("method", "sampler", "metric")
_USAGE = """usage: python -m harness.check [method=NAME] [sampler=NAME] [metric=NAME] [GROUP.KEY=VALUE ...] [options]

Checks what a class owes the harness, on a tiny problem, in seconds: gradients, exact budgets, chance, checkpoints, scores.

options:
  --help              this text
  --config-dir DIR    a folder of your own with method/, sampler/, metric/

examples:
  python -m harness.check --config-dir . method=local
  python -m harness.check --config-dir . sampler=blocks
  python -m harness.check method=seq method.one_call_share=0.3 sampler=one_call metric=entropy

Exit code 1: a contract is not kept.
"""


def main(words: list[str] | None = None) -> int:
    """Check; the exit code (see `cli.main`)."""
    return cli.main(_run, lambda folders: _USAGE, words)


def _run(given: cli.Arguments) -> Outcome | str:
    from harness.config.compose import entries_of  # start-up time: not for --help
    from harness.study.outcome import Outcome  # as above

    entries = entries_of(given.folders)
    lines, failures = [], dict[str, str]()
    for title, checks, build in _subjects(_chosen(given.overrides, entries), entries):
        reason = _reason(build)
        lines += [title, *(["  FAILED  it can be built"] if reason else [])]
        failures |= {title: reason} if reason else {}
        for check in () if reason else checks:
            about, reason = (check.__doc__ or check.__name__).split("\n")[0], _reason(check, build)
            lines.append(f"  {'FAILED' if reason else 'passed'}  {about}")
            failures |= {f"{title}: {about}": reason} if reason else {}
    return Outcome("\n".join(lines), [], failures)


def _chosen(words: list[str], entries: Entries) -> dict[str, tuple[str, dict[str, Any]]]:
    """By group, the name and the node that the arguments name, with the options that they set; raises `UserError`."""
    from harness.config.compose import parse  # start-up time: Hydra

    found = dict[str, tuple[str, dict[str, Any]]]()
    for o in sorted(parse(words), key=lambda o: "." in o.key_or_group):
        group, _, key = o.key_or_group.partition(".")
        line = o.input_line
        if group not in _GROUPS or o.is_add() or o.is_delete() or o.package:
            raise UserError(f"{line}: write method=NAME, sampler=NAME or metric=NAME{nearest(group, _GROUPS)}")
        if key and group not in found:
            raise UserError(f"{line}: is an option of a {group}, and none is named; write {group}=NAME too")
        if key:
            found[group][1][key] = o.value()
        elif str(o.value()) not in entries[group]:
            raise UserError(f"{line}: no such {group}{nearest(str(o.value()), entries[group])}")
        else:
            found[group] = str(o.value()), dict(entries[group][str(o.value())].content)
    return found


_Subject = tuple[str, "tuple[Check, ...]", Callable[[int], Any]]


def _subjects(chosen: dict[str, tuple[str, dict[str, Any]]], entries: Entries) -> Iterator[_Subject]:
    """What is checked: its title, its contract, and how it is built from a seed; raises `UserError`."""
    from harness.config.registry import build_options  # start-up time: Hydra and torch
    from harness.config.samplers import resolve_samplers
    from harness.contracts import method, metric, sampler  # as above
    from harness.contracts.world import build_method, build_sampler

    if "metric" in chosen:
        name, node = chosen["metric"]
        cls, options = build_options(node, "metric")
        yield f"metric {name}", metric.CHECKS, lambda seed: cls(options)
    if not {"method", "sampler"} & chosen.keys():
        return
    name, node = chosen.get("method") or _drawn_from(chosen["sampler"][1], entries)
    if "method" in chosen:
        yield f"method {name}", method.CHECKS, partial(build_method, node)
        resolve_samplers({name: node}, entries["sampler"])
    samplers = dict([chosen["sampler"]]) if "sampler" in chosen else node["samplers"]
    for label, own in samplers.items():
        yield f"sampler {label} on method {name}", sampler.CHECKS, partial(build_sampler, own, node)


def _drawn_from(node: dict[str, Any], entries: Entries) -> tuple[str, dict[str, Any]]:
    """The first method, by name, of a class that a sampler draws from; raises `UserError`."""
    from harness.config.registry import locate  # start-up time: Hydra

    kinds = locate(node["_target_"]).methods
    for name, entry in sorted(entries["method"].items()):
        if issubclass(locate(entry.content["_target_"]), kinds):
            return name, dict(entry.content)
    raise UserError(f"{node['_target_']} draws from no method that there is; name one with method=NAME")


def _reason(act: Callable[..., object], *arguments: Any) -> str:
    """Why a check failed, in one line; empty: it passed. Raises `UserError` where options do not fit."""
    from harness.contracts.world import Broken  # start-up time: torch

    try:
        act(*arguments or [0])
    except Broken as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever somebody's code raises is what is reported
        if isinstance(error, UserError) and not arguments:
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error).strip().split("\n")[0]
        return f"{type(error).__name__}: {said} ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


if __name__ == "__main__":
    sys.exit(main())
