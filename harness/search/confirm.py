"""The re-evaluation: the best configurations and the default once more, as the study would run them, with fresh seeds.

Each is an ordinary study in `confirm/<label>`, so that a kill costs what was being written and nothing else. They share a
folder of weights: configurations that differ only in how they sample are trained once for each seed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pandas as pd

from harness.errors import UserError
from harness.provenance import short_hash
from harness.search.best import Candidate, order
from harness.search.loaded import LoadedTune
from harness.search.objective import evaluate
from harness.search.paired import Paired, compare, in_words
from harness.search.trials import signs
from harness.store import ResultsTable, read_json, write_json, write_parquet
from harness.study.runner import run_study
from harness.study.session import Session

DEFAULT = "default"
FILE = "confirm.parquet"
_STATE = "confirm.json"


@dataclass(frozen=True)
class Run:
    """One configuration and one seed: its objectives and constraints, as the search defines them."""

    label: str
    seed: int
    values: list[float]
    constraints: list[float]


@dataclass
class Confirmation:
    """What the re-evaluation came to; `winner` is the label of the best candidate on the fresh seeds, if there is one."""

    runs: list[Run]
    seeds: list[int]
    winner: str = ""
    paired: dict[str, list[Paired]] = field(default_factory=dict)  # by label, one for each objective
    sentences: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # "<label> seed<k>" and why
    screened: list[Run] = field(default_factory=list)  # the first round, which chose who is compared

    def of(self, label: str) -> list[Run]:
        """The finished runs of one configuration, by seed."""
        return sorted((r for r in self.runs if r.label == label), key=lambda r: r.seed)


def confirm(loaded: LoadedTune, study: optuna.Study, chosen: Sequence[Candidate]) -> Confirmation:
    """Run what is not run yet of the default and of `chosen`, then compare by seed.

    With seeds to screen by, `chosen` run these first, and only the best of them is compared, with the other seeds: that
    costs two configurations in the place of many, and its interval needs no allowance for having been chosen.

    Raises `UserError` as `harness.study.runner.run_study` does. Called again with the same candidates it reads what it
    wrote; a configuration with a failed seed is looked at again.
    """
    seeds, screen = list(loaded.cfg.confirm.seeds), list(loaded.cfg.confirm.screen)
    parts = {DEFAULT: (), **{c.label: c.overrides for c in chosen}}
    trees = {label: study_tree(loaded, overrides, label, seeds) for label, overrides in parts.items()}
    several = bool(screen) and len(chosen) > 1
    identity = _identity(loaded, trees, screen if several else [])
    known = _known(loaded, identity)
    if known is None:
        known = Confirmation([], seeds)
        if several:
            _screen(loaded, study, chosen, known)
            kept = {DEFAULT, _winner(known.screened, screen, [c.label for c in chosen], signs(study.directions))}
            trees = {label: tree for label, tree in trees.items() if label in kept}
        for i, (label, tree) in enumerate(trees.items()):
            _say(f"confirmation {i + 1}/{len(trees)}", label, seeds)
            known.runs += _run(loaded, label, tree, seeds, known.failures)
        frame_of(loaded, known).pipe(lambda frame: write_parquet(loaded.folder / FILE, frame))
        rows = {key: [[r.label, r.seed, r.values, r.constraints] for r in made]
                for key, made in (("runs", known.runs), ("screened", known.screened))}  # fmt: skip
        # A failure may have been the machine's: with one, the next command looks again.
        write_json(loaded.folder / _STATE, {"identity": "" if known.failures else identity, **rows})
    compared = {r.label for r in known.runs} if known.screened else set(parts)
    return _judge(loaded, study, known, [label for label in parts if label in compared])


def _screen(loaded: LoadedTune, study: optuna.Study, chosen: Sequence[Candidate], known: Confirmation) -> None:
    """The first round: all of `chosen`, with the seeds that only choose."""
    seeds = list(loaded.cfg.confirm.screen)
    for i, c in enumerate(chosen):
        _say(f"screening {i + 1}/{len(chosen)}", c.label, seeds)
        tree = study_tree(loaded, c.overrides, f"{c.label}-screen", seeds)
        known.screened += _run(loaded, c.label, tree, seeds, known.failures)


def _say(stage: str, label: str, seeds: Sequence[int]) -> None:
    print(f"{stage}: {label}, seeds {', '.join(map(str, seeds))}", file=sys.stderr, flush=True)


def study_tree(loaded: LoadedTune, overrides: Sequence[str], label: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The configuration of one of its studies: the study's own with these overrides, one method, the fresh seeds."""
    cfg, base = loaded.cfg, loaded.base.cfg
    tree = loaded.draft.loaded(list(overrides)).tree
    study = tree["study"]
    study |= {"name": f"{loaded.place}/confirm/{label}", "question": f"{label} of {cfg.name} with fresh seeds"}
    study |= {"seeds": list(seeds), "samples": cfg.confirm.samples or base.study.samples}
    study |= {"nfe": loaded.budgets, "temperatures": loaded.temperatures(study)}
    study.pop("nfe_of", None)
    tree["tracking"]["experiment"] = tree["tracking"]["experiment"] or base.study.name
    return tree | {"only": [cfg.method], "plan": False}


def _identity(loaded: LoadedTune, trees: Mapping[str, dict[str, Any]], screen: Sequence[int]) -> str:
    """What the comparison depends on; where it runs and is logged is no part of it."""
    cfg = loaded.cfg
    content = {label: {k: v for k, v in tree.items() if k != "tracking"} for label, tree in trees.items()}
    return short_hash([content, cfg.objectives, cfg.constraints, list(screen)], 12)


def _known(loaded: LoadedTune, identity: str) -> Confirmation | None:
    path = loaded.folder / _STATE
    state = read_json(path) if path.exists() else {}
    if state.get("identity") != identity:
        return None
    runs, screened = ([Run(*row) for row in state[key]] for key in ("runs", "screened"))
    return Confirmation(runs, list(loaded.cfg.confirm.seeds), screened=screened)


def _run(
    loaded: LoadedTune, label: str, tree: dict[str, Any], seeds: Sequence[int], failures: dict[str, str]
) -> list[Run]:
    """Run one configuration as a study; its finished seeds, and the failed ones into `failures`."""
    session = Session(tree, loaded.folder / "confirm" / "weights", server=loaded.base.cfg.tracking.uri)
    outcome = run_study(session, loaded.command)
    failures |= {f"{label} {name.rsplit('/', 1)[-1]}": reason for name, reason in outcome.failures.items()}
    path = session.folder / "results.parquet"
    if not path.exists():
        return []
    frame = ResultsTable.read(path)
    runs, (method, sampler) = [], loaded.cfg.row
    for seed in seeds:
        rows = _rows(frame[(frame["seed"] == seed) & (frame["method"] == method) & (frame["sampler"] == sampler)])
        if not rows or f"{label} seed{seed}" in failures:
            continue
        try:
            values, constraints, _ = evaluate(loaded.context, rows)
        except UserError as error:  # an objective that is not a number
            failures[f"{label} seed{seed}"] = str(error)
        else:
            runs.append(Run(label, int(seed), [float(v) for v in values], [float(c) for c in constraints]))
    return runs


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as `harness.study.rows` makes them: plain numbers and words, None for what is not known."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def frame_of(loaded: LoadedTune, done: Confirmation) -> pd.DataFrame:
    """One row for each configuration and seed: `label`, `seed`, `value.<objective>`, `constraint.<name>`, `feasible`."""
    rows = [
        {"label": r.label, "seed": r.seed}
        | {f"value.{n}": v for n, v in zip(loaded.cfg.objectives, r.values, strict=True)}
        | {f"constraint.{n}": v for n, v in zip(loaded.cfg.constraints, r.constraints, strict=True)}
        | {"feasible": all(c <= 0 for c in r.constraints)}
        for r in done.runs
    ]
    return pd.DataFrame(rows)


# ---- the comparison ---------------------------------------------------------------------------------------------------
def _judge(loaded: LoadedTune, study: optuna.Study, done: Confirmation, labels: list[str]) -> Confirmation:
    names, sign_K = list(loaded.cfg.objectives), signs(study.directions)
    others = [label for label in labels if label != DEFAULT]
    for label in others:
        done.paired[label] = [
            compare(
                name,
                {r.seed: r.values[k] for r in done.of(label)},
                {r.seed: r.values[k] for r in done.of(DEFAULT)},
                sign_K[k] > 0,
                len(others) * len(names),
            )
            for k, name in enumerate(names)
        ]
        done.sentences += [in_words(label, p) for p in done.paired[label]]
    done.sentences += [line for label in labels if (line := _remark(loaded, done, label))]
    done.winner = _winner(done.runs, done.seeds, others, sign_K)
    return done


def _remark(loaded: LoadedTune, done: Confirmation, label: str) -> str:
    """What a reader must know besides the values: failed seeds, broken constraints."""
    runs, parts = done.of(label), []
    if len(runs) < len(done.seeds):
        parts.append(f"only {len(runs)} of {len(done.seeds)} seeds finished")
    for k, name in enumerate(loaded.cfg.constraints):
        broken = sum(not r.constraints[k] <= 0 for r in runs)  # not a number is not kept
        if broken:
            parts.append(f"breaks the constraint {name} on {broken} of {len(runs)} seeds")
    return f"{label}: {'; '.join(parts)}" if parts else ""


def _winner(made: Sequence[Run], seeds: Sequence[int], labels: list[str], sign_K: np.ndarray) -> str:
    """The best mean on the seeds among those that finished all and keep the constraints on average.

    Where none keeps them, among those that finished all; where none did, among those that finished any.
    """
    runs = {label: [r for r in made if r.label == label] for label in labels}
    finished = [label for label in labels if runs[label]]
    complete = [label for label in finished if len(runs[label]) == len(seeds)]
    able = [label for label in complete if _keeps(runs[label])]
    pool = able or complete or finished
    if not pool:
        return ""
    cost_TK = np.array([np.mean([r.values for r in runs[label]], axis=0) for label in pool]) * sign_K
    return pool[order(cost_TK)[0]]


def _keeps(runs: list[Run]) -> bool:
    return all(float(np.mean(column)) <= 0 for column in zip(*(r.constraints for r in runs), strict=True))
