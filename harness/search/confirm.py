"""The re-evaluation: the best configurations and the default once more, as the study would run them, with fresh seeds.

Each is an ordinary study in `confirm/<label>`, so that a kill costs what was being written and nothing else, and who asks
again finds what is there. They share a folder of weights: configurations that differ only in how they sample are trained
once for each seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pandas as pd

from harness.errors import UserError
from harness.search.best import Candidate, order
from harness.search.loaded import LoadedTune, judged_at
from harness.search.objective import evaluate
from harness.search.paired import Paired, compare, in_words
from harness.search.trials import signs
from harness.store import ResultsTable, write_parquet
from harness.study.runner import run_study
from harness.study.session import Session

DEFAULT = "default"
FILE = "confirm.parquet"


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
        """The finished runs of one configuration."""
        return [r for r in self.runs if r.label == label]


def confirm(loaded: LoadedTune, study: optuna.Study, chosen: Sequence[Candidate]) -> Confirmation:
    """Run what is not run yet of the default and of `chosen`, then compare by seed.

    With seeds to screen by, `chosen` run these first, and only the best of them is compared, with the other seeds: that
    costs two configurations in the place of many, and its interval needs no allowance for having been chosen.

    Raises `UserError` as `harness.study.runner.run_study` does.
    """
    cfg, sign_K = loaded.cfg.confirm, signs(study.directions)
    done = Confirmation([], list(cfg.seeds))
    parts = {c.label: c.overrides for c in chosen}
    if cfg.screen and len(parts) > 1:
        for label, overrides in parts.items():
            done.screened += _run(loaded, label, overrides, list(cfg.screen), done.failures, "-screen")
        best = _winner(done.screened, len(cfg.screen), list(parts), sign_K)
        parts = {label: overrides for label, overrides in parts.items() if label == best}
    for label, overrides in ({DEFAULT: ()} | parts).items():
        done.runs += _run(loaded, label, overrides, done.seeds, done.failures)
    write_parquet(loaded.folder / FILE, frame_of(loaded, done))
    _judge(loaded, done, list(parts), sign_K)
    return done


def study_tree(loaded: LoadedTune, overrides: Sequence[str], place: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The configuration of one of its studies: the study's own with these overrides, one method, the fresh seeds."""
    cfg, base = loaded.cfg, loaded.base.cfg
    tree = loaded.draft.loaded(list(overrides)).tree
    study = tree["study"]
    study |= {"name": f"{loaded.place}/confirm/{place}", "question": f"{place} of {cfg.name} with fresh seeds"}
    study |= {"seeds": list(seeds), "samples": cfg.confirm.samples or base.study.samples}
    study |= {"nfe": cfg.budgets, "temperatures": [judged_at(study)]}
    study.pop("nfe_of", None)
    tree["tracking"]["experiment"] = tree["tracking"]["experiment"] or base.study.name
    return tree | {"only": [cfg.method], "plan": False}


def _run(
    loaded: LoadedTune, label: str, overrides: Sequence[str], seeds: list[int], failures: dict[str, str], end: str = ""
) -> list[Run]:
    """Run one configuration as a study; its finished seeds, and the failed ones into `failures`."""
    print(f"confirmation of {label}{end}, seeds {', '.join(map(str, seeds))}", file=sys.stderr, flush=True)
    tree = study_tree(loaded, overrides, label + end, seeds)
    session = Session(tree, weights=loaded.folder / "confirm" / "weights")
    outcome = run_study(session, loaded.command)
    failures |= {f"{label} {name.rsplit('/', 1)[-1]}": reason for name, reason in outcome.failures.items()}
    path = session.folder / "results.parquet"
    if not path.exists():
        return []
    frame, runs = ResultsTable.read(path), []
    for seed in seeds:
        name = f"{label} seed{seed}"
        rows = [{str(k): v for k, v in row.items()} for row in frame[frame["seed"] == seed].to_dict("records")]
        if not rows or name in failures:
            continue
        try:
            values, constraints, _ = evaluate(loaded.context, rows)
        except UserError as error:  # an objective that is not a number
            failures[name] = str(error)
        else:
            runs.append(Run(label, seed, values, constraints))
    return runs


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
def _judge(loaded: LoadedTune, done: Confirmation, labels: list[str], sign_K: np.ndarray) -> None:
    """Compare each label with the default, and say who is the best."""
    names = list(loaded.cfg.objectives)
    for label in labels:
        for k, name in enumerate(names):
            ours, theirs = ({r.seed: r.values[k] for r in done.of(each)} for each in (label, DEFAULT))
            p = compare(name, ours, theirs, sign_K[k] > 0, len(labels) * len(names))
            done.paired.setdefault(label, []).append(p)
            done.sentences.append(in_words(label, p))
    done.sentences += filter(None, (_remark(loaded, done, label) for label in (DEFAULT, *labels)))
    done.winner = _winner(done.runs, len(done.seeds), labels, sign_K)


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


def _winner(runs: Sequence[Run], seeds: int, labels: list[str], sign_K: np.ndarray) -> str:
    """The best mean among those that finished all seeds and keep the constraints on average.

    Where none keeps them, among those that finished all; where none did, among those that finished any.
    """
    made = {label: [r for r in runs if r.label == label] for label in labels}
    finished = [label for label in labels if made[label]]
    complete = [label for label in finished if len(made[label]) == seeds]
    able = [label for label in complete if (np.mean([r.constraints for r in made[label]], axis=0) <= 0).all()]
    pool = able or complete or finished
    if not pool:
        return ""
    return pool[order(np.array([np.mean([r.values for r in made[label]], axis=0) for label in pool]) * sign_K)[0]]
