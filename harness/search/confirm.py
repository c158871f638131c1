"""The re-evaluation: is a configuration better than the default? Both once more, as the study would run them, with fresh seeds.

The best of many trials is partly the luckiest one: its own value is too good on average. So the question is put to runs with
seeds that the search did not use: their differences are paired by seed, and, where several configurations are asked about, the
intervals hold for all of them together (Bonferroni's bound: each at confidence 1 - 0.05 / comparisons).

Each is an ordinary study in `confirm/<label>`, so that a kill costs what was being written and nothing else, and who asks
again finds what is there. They share a folder of weights: configurations that differ only in how they sample are trained
once for each seed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pandas as pd

from harness.errors import UserError
from harness.search.loaded import LoadedTune, judged_at
from harness.search.trial import evaluate
from harness.search.trials import Candidate, order, signs
from harness.store import ResultsTable, write_parquet
from harness.study.runner import run_study
from harness.study.session import Session

DEFAULT = "default"
FILE = "confirm.parquet"
#: One configuration and one seed, as a row of the table: `label`, `seed`, `value.<objective>`, `constraint.<name>`, `feasible`.
Run = dict[str, Any]
#: Chance that any of the intervals misses its true difference.
ALPHA = 0.05
BEATS, NONE, WORSE, UNKNOWN = "beats the default", "no difference shown", "worse than the default", "cannot be told"


@dataclass(frozen=True)
class Paired:
    """A configuration against the default in one objective; differences are its value minus the default's."""

    objective: str
    seeds: int  # that both finished
    mean: float
    default: float
    difference: float
    se: float  # standard error of the mean difference
    low: float
    high: float
    level: float  # confidence of this interval
    verdict: str


@dataclass
class Confirmation:
    """What the re-evaluation came to; `winner` is the label of the best candidate on the fresh seeds, if there is one."""

    runs: list[Run]
    seeds: list[int]
    winner: str = ""
    paired: dict[str, list[Paired]] = field(default_factory=dict)  # by label, one for each objective
    remarks: list[str] = field(default_factory=list)  # on failed seeds and broken constraints
    failures: dict[str, str] = field(default_factory=dict)  # "<label> seed<k>" and why
    screened: list[Run] = field(default_factory=list)  # the first round, which chose who is compared

    def of(self, label: str) -> list[Run]:
        """The finished runs of one configuration."""
        return [run for run in self.runs if run["label"] == label]


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
    write_parquet(loaded.folder / FILE, pd.DataFrame(done.runs))
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
    study |= {"nfe_of": {}, "equivalent_nfe": []}
    tree["tracking"]["experiment"] = tree["tracking"]["experiment"] or base.study.name
    return tree | {"only": [cfg.method], "plan": False}


def _run(
    loaded: LoadedTune, label: str, overrides: Sequence[str], seeds: list[int], failures: dict[str, str], end: str = ""
) -> list[Run]:
    """Run one configuration as a study; its finished seeds, and the failed ones into `failures`."""
    print(f"confirmation of {label}{end}, seeds {', '.join(map(str, seeds))}", file=sys.stderr, flush=True)
    tree = study_tree(loaded, overrides, label + end, seeds)
    session = Session(tree, weights=loaded.folder / "confirm" / "weights", server=loaded.base.cfg.tracking.uri)
    outcome = run_study(session, loaded.command)
    failures |= {f"{label} {name.rsplit('/', 1)[-1]}": reason for name, reason in outcome.failures.items()}
    path = session.folder / "results.parquet"
    if not path.exists():
        return []
    frame, runs, cfg = ResultsTable.read(path), list[Run](), loaded.cfg
    for seed in seeds:
        name = f"{label} seed{seed}"
        rows = [{str(k): v for k, v in row.items()} for row in frame[frame["seed"] == seed].to_dict("records")]
        if not rows or name in failures:
            continue
        try:
            values, constraints, _ = evaluate(loaded.context, rows)
        except UserError as error:  # an objective that is not a number
            failures[name] = str(error)
            continue
        run = {"label": label, "seed": seed} | {f"value.{n}": v for n, v in zip(cfg.objectives, values, strict=True)}
        run |= {f"constraint.{n}": v for n, v in zip(cfg.constraints, constraints, strict=True)}
        runs.append(run | {"feasible": all(c <= 0 for c in constraints)})
    return runs


# ---- the comparison ---------------------------------------------------------------------------------------------------
def t_interval(values_S: np.ndarray, level: float) -> tuple[float, float, float]:
    """(standard error, low, high) of the mean of S numbers by Student's t with S - 1 degrees of freedom.

    With fewer than two numbers nothing is known of their spread: the error is NaN and the interval is the whole line.
    """
    if len(values_S) < 2:
        return math.nan, -math.inf, math.inf
    from scipy.stats import sem, t

    mean, se = float(values_S.mean()), float(sem(values_S))
    half = float(t.ppf(0.5 + level / 2, len(values_S) - 1)) * se
    return se, mean - half, mean + half


def compare(
    objective: str, values: Mapping[int, float], default: Mapping[int, float], lower: bool, comparisons: int = 1
) -> Paired:
    """Compare two configurations by their values by seed; seeds that only one of them finished are left out.

    `lower` says that lower values are better; `comparisons` is how many intervals shall hold together.
    """
    both = sorted(values.keys() & default.keys())
    level = 1 - ALPHA / max(1, comparisons)
    ours_S, theirs_S = (np.array([each[seed] for seed in both], dtype=float) for each in (values, default))
    se, low, high = t_interval(ours_S - theirs_S, level)
    better, worse = (high < 0, low > 0) if lower else (low > 0, high < 0)
    verdict = BEATS if better else WORSE if worse else NONE if len(both) > 1 else UNKNOWN
    mean, other = (float(v_S.mean()) if both else math.nan for v_S in (ours_S, theirs_S))
    return Paired(objective, len(both), mean, other, mean - other, se, low, high, level, verdict)


def _judge(loaded: LoadedTune, done: Confirmation, labels: list[str], sign_K: np.ndarray) -> None:
    """Compare each label with the default, and say who is the best."""
    names = list(loaded.cfg.objectives)
    for label in labels:
        for k, name in enumerate(names):
            ours, theirs = ({run["seed"]: run[f"value.{name}"] for run in done.of(each)} for each in (label, DEFAULT))
            p = compare(name, ours, theirs, sign_K[k] > 0, len(labels) * len(names))
            done.paired.setdefault(label, []).append(p)
    done.remarks += filter(None, (_remark(loaded, done, label) for label in (DEFAULT, *labels)))
    done.winner = _winner(done.runs, len(done.seeds), labels, sign_K)


def _remark(loaded: LoadedTune, done: Confirmation, label: str) -> str:
    """What a reader must know besides the values: failed seeds, broken constraints."""
    runs, parts = done.of(label), []
    if len(runs) < len(done.seeds):
        parts.append(f"only {len(runs)} of {len(done.seeds)} seeds finished")
    for name in loaded.cfg.constraints:
        broken = sum(not run[f"constraint.{name}"] <= 0 for run in runs)  # not a number is not kept
        if broken:
            parts.append(f"breaks the constraint {name} on {broken} of {len(runs)} seeds")
    return f"{label}: {'; '.join(parts)}" if parts else ""


def _winner(runs: Sequence[Run], seeds: int, labels: list[str], sign_K: np.ndarray) -> str:
    """The best mean among those that finished all seeds and keep the constraints on average.

    Where none keeps them, among those that finished all; where none did, among those that finished any.
    """
    made = {label: pd.DataFrame([run for run in runs if run["label"] == label]) for label in labels}
    finished = [label for label in labels if len(made[label])]
    complete = [label for label in finished if len(made[label]) == seeds]
    able = [label for label in complete if (made[label].filter(like="constraint.").mean() <= 0).all()]
    pool = able or complete or finished
    means = [made[label].filter(like="value.").mean().to_numpy() for label in pool]
    return pool[order(np.array(means) * sign_K)[0]] if pool else ""
