"""`report.md` of a tuning: what was searched, what was found, whether it holds with fresh seeds, and the figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import optuna

from harness.provenance import git_state
from harness.report.table import markdown
from harness.search.best import Candidate, best_command, in_words
from harness.search.confirm import DEFAULT, Confirmation
from harness.search.figures import AT_LEAST
from harness.search.loaded import LoadedTune
from harness.search.paired import ALPHA
from harness.search.trials import all_trials, tally
from harness.store import write_text
from harness.tracking.uri import without_logins

FILE = "report.md"
_ABOUT = {
    "history": "Values of the trials in the order in which they began.",
    "importances": "Importance by PED-ANOVA (Watanabe et al., 2023): how far the best trials (a tenth of them, or "
    f"{AT_LEAST}) are from being spread as all trials are, in each dimension by itself; shares of the sum.",
    "slice": "Each dimension by itself; trials that break a constraint are grey.",
    "contour": "Pairs of the most important dimensions; colours between the trials are interpolated.",
    "pareto": "The front of the trials that meet the constraints.",
    "confirm": "The default and the best configurations with fresh seeds; a line joins what has the same seed.",
}


@dataclass
class Findings:
    """What a tuning ended with, for the report and for what is printed."""

    chosen: list[Candidate]
    best: Candidate | None = None
    how: str = ""  # in words, how the best was chosen
    confirmation: Confirmation | None = None
    figures: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(loaded: LoadedTune, study: optuna.Study, found: Findings) -> Path:
    """Write `report.md` in the tune folder and return its path."""
    parts = [
        f"# Tuning {loaded.base.cfg.study.name}/{loaded.cfg.name}",
        f"`{without_logins(loaded.command)}`, at {git_state().label}",
        "## Found",
        *_found(loaded, found),
        *_confirmed(loaded, found.confirmation),
        "## Searched",
        _space(loaded),
        _how(loaded, study),
        *_dashboard(loaded),
        *([] if not found.figures else ["## Figures"]),
        *(f"![{p.stem}](figures/{p.name})\n\n{_ABOUT.get(p.stem.split('-')[0], '')}" for p in found.figures),
        *([] if not found.notes else ["## Left out", "\n".join(f"- {note}" for note in found.notes)]),
    ]
    path = loaded.folder / FILE
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _dashboard(loaded: LoadedTune) -> list[str]:
    path = loaded.folder / "journal.log"
    return [f"All trials: `optuna-dashboard {path} --host 127.0.0.1`"] if path.exists() else []


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4g}"


def _found(loaded: LoadedTune, found: Findings) -> list[str]:
    if found.best is None:
        return ["No trial was finished, so there is nothing to choose from."]
    several = len(loaded.cfg.objectives) > 1
    best = found.best
    rows = [[f"`{key}`", f"`{value}`"] for key, _, value in (o.partition("=") for o in best.overrides)]
    parts = [
        f"{in_words(best, loaded, several)[0].upper()}{in_words(best, loaded, several)[1:]}. {found.how}",
        markdown(["key", "value"], rows) if rows else "It changes nothing.",
    ]
    if best.feasible:
        parts.append(f"`best.yaml` runs it as it is:\n\n```\n{best_command(loaded, best)}\n```")
    if several and len(found.chosen) > 1:
        names = list(loaded.cfg.objectives)
        others = [
            [str(c.trial.number), *(_number(v) for v in c.trial.values), ", ".join(c.overrides)] for c in found.chosen
        ]
        parts.append("Re-evaluated, in this order:\n\n" + markdown(["trial", *names, "overrides"], others))
    return parts


def _confirmed(loaded: LoadedTune, done: Confirmation | None) -> list[str]:
    if done is None:
        return []
    samples = loaded.cfg.confirm.samples or loaded.base.cfg.study.samples
    level = next((p.level for parts in done.paired.values() for p in parts), 1 - ALPHA)
    count = sum(map(len, done.paired.values()))
    together = f"all {count} intervals together at {1 - ALPHA:.0%}" if count > 1 else f"{1 - ALPHA:.0%}"
    seeds = ", ".join(map(str, done.seeds))
    return [
        "## Confirmed with fresh seeds",
        f"{len(done.seeds)} seed{'s' if len(done.seeds) != 1 else ''} ({seeds}) that no trial used, {samples} samples, the "
        f"study's own training. Differences to the {DEFAULT} are paired by seed; intervals are Student's t at {level:.1%} "
        f"each ({together}).",
        comparison(done),
        "\n".join(f"- {sentence}" for sentence in done.sentences),
        *_screened(loaded, done),
        *(["Failed: " + "; ".join(f"{k} ({v})" for k, v in done.failures.items())] if done.failures else []),
    ]


def comparison(done: Confirmation) -> str:
    """The table of what was compared with the default: a row for each configuration and objective."""
    head = ["fresh seeds", "objective", "seeds", "mean", "default", "difference", "se", "interval", "verdict"]
    rows = [
        [label, p.objective, str(p.seeds), _number(p.mean), _number(p.default), f"{p.difference:+.4g}", _number(p.se),
         f"{p.low:+.4g} to {p.high:+.4g}" if p.seeds > 1 else "none", p.verdict]
        for label, parts in done.paired.items()
        for p in parts
    ]  # fmt: skip
    return markdown(head, rows)


def _screened(loaded: LoadedTune, done: Confirmation) -> list[str]:
    """The first round, if there was one: it chose who was compared, and its seeds are no part of the comparison."""
    if not done.screened:
        return []
    rows = [[r.label, str(r.seed), *(_number(v) for v in r.values)] for r in done.screened]
    told = "The first round, with seeds that only chose which configuration is compared with the default:"
    return [told + "\n\n" + markdown(["configuration", "seed", *loaded.cfg.objectives], rows)]


def _space(loaded: LoadedTune) -> str:
    rows = [[f"`{key}`", d.kind, d.values, d.conditions] for key, d in loaded.cfg.space.items()]
    return markdown(["key", "kind", "values", "only where"], rows)


def _how(loaded: LoadedTune, study: optuna.Study) -> str:
    cfg, now = loaded.cfg, tally(all_trials(study))
    goals = [f"{name} ({study.directions[k].name.lower()})" for k, name in enumerate(cfg.objectives)]
    limits = f" Constraints: {', '.join(cfg.constraints)}." if cfg.constraints else ""
    pruner = cfg.pruner.kind if cfg.pruner.kind == "none" else f"{cfg.pruner.kind} on the {cfg.pruner.signal}"
    return (
        f"Objective{'s' if len(goals) > 1 else ''}: {', '.join(goals)}.{limits} Sampler: {cfg.sampler}. Pruner: {pruner}. "
        f"Trials: {now.complete} finished, {now.pruned} pruned, {now.failed} failed, {now.lost} lost with their worker and "
        f"tried again. A trial trains with seed {cfg.seed} for {cfg.steps:.0%} of the study's steps and is scored on "
        f"{cfg.samples} samples."
    )
