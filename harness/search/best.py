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
from harness.search.trials import all_trials, feasible, signs
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

    def in_words(self, objectives: Sequence[str]) -> str:
        """One line: which trial, its values, and whether it is the best, the knee of a front, or only the closest."""
        values = ", ".join(f"{n} {v:.4g}" for n, v in zip(objectives, self.trial.values, strict=True))
        if not self.feasible:
            return f"no trial meets the constraints; the closest is trial {self.trial.number} ({values})"
        kind = "knee of the front" if len(objectives) > 1 else "best"
        return f"{kind}: trial {self.trial.number} ({values})"


def order(cost_TK: np.ndarray) -> list[int]:
    """Rows from best to worst, where lower is better in each column.

    With one column by its value. With several, by the distance to the ideal point, which has the lowest value of each
    column, after every column was scaled to 0..1: the first is the knee of the front.
    """
    span_K = np.ptp(cost_TK, axis=0)
    unit_TK = (cost_TK - cost_TK.min(0)) / np.where(span_K > 0, span_K, 1.0)
    return [int(i) for i in np.argsort((unit_TK**2).sum(1), kind="stable")]


def candidates(loaded: LoadedTune, study: optuna.Study, count: int) -> list[Candidate]:
    """At most `count` distinct configurations, the best first; empty where no trial was completed.

    With several objectives those on the front come first, the knee before the others, then the rest. Where no trial
    meets the constraints, the one that is closest to it, alone and marked as not feasible.
    """
    done = [t for t in all_trials(study) if t.state == TrialState.COMPLETE]
    able = [t for t in done if feasible(t)]
    if done and not able:
        able = [min(done, key=lambda t: sum(max(0.0, c) for c in t.constraints.values()))]
    front = {t.number for t in (study.best_trials if len(study.directions) > 1 else able)}
    chosen: dict[tuple[str, ...], Candidate] = {}
    for layer in ([t for t in able if (t.number in front) == first] for first in (True, False)):
        if layer:
            for i in order(np.array([t.values for t in layer]) * signs(study.directions)):
                overrides = tuple(overrides_of(layer[i].params, loaded.cfg))
                chosen.setdefault(overrides, Candidate(layer[i], overrides, feasible(layer[i])))
    return list(chosen.values())[:count]


def best_command(loaded: LoadedTune, candidate: Candidate) -> str:
    """The command that runs the study with its best configuration, logins blotted out.

    Arguments of the search that set what it varied are left out, since they would win over the file.
    """
    folders = [part for folder in loaded.config_dirs for part in ("--config-dir", str(folder))]
    found = {key_of(o) for o in candidate.overrides}
    given = [redact(a) for a in loaded.base_args if key_of(a) not in found]
    path, here = loaded.folder / FILE, Path.cwd()
    near = path.relative_to(here) if path.is_relative_to(here) else path
    return shlex.join(["python", "-m", "harness.run", *folders, *given, f"+best={near}"])


def write_best(loaded: LoadedTune, candidate: Candidate, chosen: str, confirmed: Sequence[dict[str, Any]] = ()) -> Path:
    """Write `best.yaml`; `chosen` says how it was chosen, `confirmed` what its re-evaluation came to."""
    cfg, trial, command = loaded.cfg, candidate.trial, best_command(loaded, candidate)
    content = {
        "study": loaded.base.cfg.study.name,
        "tune": cfg.name,
        "method": cfg.method,
        "trial": trial.number,
        "feasible": candidate.feasible,
        "chosen": chosen,
        "values": dict(zip(cfg.objectives, trial.values, strict=True)),
        "constraints": dict(trial.constraints),
        "confirmed": list(confirmed),
        "overrides": list(candidate.overrides),
        "command": command,
    }
    head = f"# The best configuration that {cfg.name} found; run it with\n#   {command}\n"
    path = loaded.folder / FILE
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
    return path
