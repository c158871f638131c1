"""Which trials a tuning ends with, and the file that runs its best configuration as it is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from harness.config.best import key_of
from harness.search.loaded import LoadedTune
from harness.search.space import overrides_of
from harness.search.trials import CONSTRAINTS, all_trials, feasible, front, signs
from harness.store import write_text
from harness.tracking.uri import redact

FILE = "best.yaml"


@dataclass(frozen=True)
class Candidate:
    """A configuration worth a second look: the trial that stands for it, and the overrides that make it."""

    trial: FrozenTrial
    overrides: tuple[str, ...]
    feasible: bool

    @property
    def label(self) -> str:
        return f"trial-{self.trial.number:04d}"


def order(cost_TK: np.ndarray) -> list[int]:
    """Rows from best to worst, where lower is better in each column.

    With one column by its value. With several, by the distance to the ideal point, which has the lowest value of each
    column, after every column was scaled to 0..1: the first is the knee of the front.
    """
    span_K = np.ptp(cost_TK, axis=0)
    unit_TK = (cost_TK - cost_TK.min(0)) / np.where(span_K > 0, span_K, 1.0)
    far_T = unit_TK[:, 0] if unit_TK.shape[1] == 1 else np.sqrt((unit_TK**2).sum(1))
    return [int(i) for i in np.argsort(far_T, kind="stable")]


def _violation(trial: FrozenTrial) -> float:
    """How far a trial is from meeting its constraints: the sum of what each is broken by, in its own unit."""
    return float(sum(max(0.0, c) for c in trial.user_attrs.get(CONSTRAINTS) or []))


def candidates(loaded: LoadedTune, study: optuna.Study, count: int) -> list[Candidate]:
    """At most `count` distinct configurations, the best first; empty where no trial was completed.

    With several objectives those on the front come first, the knee before the others, then the rest. Where no trial
    meets the constraints, the one that is closest to it, alone and marked as not feasible.
    """
    trials = all_trials(study)
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    able = [t for t in done if feasible(t)]
    if not able:
        if not done:
            return []
        closest = min(done, key=lambda t: (_violation(t), t.number))
        return [Candidate(closest, _overrides(loaded, closest), False)]
    chosen: dict[tuple[str, ...], Candidate] = {}
    left = able
    while left and len(chosen) < count:
        # One objective: all in order. Several: front after front.
        layer = left if len(study.directions) == 1 else front(left, study.directions)
        cost_TK = np.array([t.values for t in layer]) * signs(study.directions)
        for i in order(cost_TK):
            overrides = _overrides(loaded, layer[i])
            if len(chosen) < count:
                chosen.setdefault(overrides, Candidate(layer[i], overrides, True))
        taken = {t.number for t in layer}
        left = [t for t in left if t.number not in taken]
    return list(chosen.values())


def _overrides(loaded: LoadedTune, trial: FrozenTrial) -> tuple[str, ...]:
    return tuple(overrides_of(trial.params, loaded.cfg))


def best_command(loaded: LoadedTune, candidate: Candidate) -> str:
    """The command that runs the study with its best configuration, logins blotted out.

    Arguments of the search that set what it varied are left out, since they would win over the file.
    """
    folders = [part for folder in loaded.config_dirs for part in ("--config-dir", str(folder))]
    found = {key_of(o) for o in candidate.overrides}
    given = [redact(a) for a in loaded.base_args if key_of(a) not in found]
    return shlex.join(["python", "-m", "harness.run", *folders, *given, f"+best={_near(loaded.folder / FILE)}"])


def _near(path: Path) -> Path:
    """The path from the working folder where it is in it."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def write_best(loaded: LoadedTune, candidate: Candidate, chosen: str, confirmed: Sequence[dict[str, Any]] = ()) -> Path:
    """Write `best.yaml`; `chosen` says how it was chosen, `confirmed` what its re-evaluation came to."""
    cfg, trial, command = loaded.cfg, candidate.trial, best_command(loaded, candidate)
    bounds = trial.user_attrs.get(CONSTRAINTS) or []
    content = {
        "study": loaded.base.cfg.study.name,
        "tune": cfg.name,
        "method": cfg.method,
        "trial": trial.number,
        "feasible": candidate.feasible,
        "chosen": chosen,
        "values": {n: float(v) for n, v in zip(cfg.objectives, trial.values, strict=True)},
        "constraints": {n: float(v) for n, v in zip(cfg.constraints, bounds, strict=False)},
        "confirmed": [dict(row) for row in confirmed],
        "overrides": list(candidate.overrides),
        "command": command,
    }
    head = f"# The best configuration that {cfg.name} found; run it with\n#   {command}\n"
    path = loaded.folder / FILE
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
    return path


def in_words(candidate: Candidate, loaded: LoadedTune, several: bool) -> str:
    """One line: which trial, its values, and whether it is the best, the knee of a front, or only the closest."""
    values = ", ".join(f"{n} {v:.4g}" for n, v in zip(loaded.cfg.objectives, candidate.trial.values, strict=True))
    if not candidate.feasible:
        return f"no trial meets the constraints; the closest is trial {candidate.trial.number} ({values})"
    kind = "knee of the front" if several else "best"
    return f"{kind}: trial {candidate.trial.number} ({values})"
