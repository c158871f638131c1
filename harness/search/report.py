"""What a tuning ends with, in words: `report.md`, and what the command prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import optuna

from harness.provenance import git_state
from harness.report.table import markdown
from harness.search.best import Candidate, best_command
from harness.search.confirm import DEFAULT, Confirmation
from harness.search.loaded import LoadedTune
from harness.search.paired import ALPHA
from harness.search.trials import all_trials, tally
from harness.store import write_text
from harness.tracking.uri import redact

FILE = "report.md"
_ABOUT = {
    "history": "Values of the trials in the order in which they began.",
    "importances": "Importance by PED-ANOVA (Watanabe et al., 2023): how far the best trials (a tenth of them, or five) are "
    "from being spread as all trials are, in each dimension by itself; shares of the sum.",
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

    @property
    def verdict(self) -> str:
        """The answer in one sentence: is the configuration of `best.yaml` better than the default?"""
        parts = self.confirmation.paired.get(self.best.label) if self.confirmation and self.best else None
        if not parts or not self.best:
            return "nothing was re-evaluated"
        seeds = min(p.seeds for p in parts)
        said = parts[0].verdict
        if len(parts) > 1:
            said = "; ".join(f"{p.objective}: {p.verdict}" for p in parts)
        return f"verdict on {self.best.label} with {seeds} fresh seed{'s' if seeds != 1 else ''}: {said}"


def printed(loaded: LoadedTune, found: Findings) -> str:
    """What the command prints: the best, its overrides, the verdicts, what is left out."""
    if found.best is None:
        return "no result"
    lines = [found.best.in_words(list(loaded.cfg.objectives)), *(f"  {o}" for o in found.best.overrides)]
    if found.confirmation is not None:
        lines += ["", _comparison(found.confirmation), "", found.verdict]
        lines += [s for s in found.confirmation.sentences if "constraint" in s or "finished" in s]
    return "\n".join([*lines, *found.notes])


def write_report(loaded: LoadedTune, study: optuna.Study, found: Findings) -> Path:
    """Write `report.md` in the tune folder and return its path."""
    journal = loaded.folder / "journal.log"
    parts = [
        f"# Tuning {loaded.name}",
        f"`{redact(loaded.command)}`, at {git_state().label}",
        "## Found",
        *_found(loaded, found),
        *(_confirmed(loaded, found.confirmation) if found.confirmation else []),
        "## Searched",
        markdown(
            ["key", "kind", "values", "only where"],
            [[f"`{key}`", d.kind, d.values, d.conditions] for key, d in loaded.cfg.space.items()],
        ),
        _how(loaded, study),
        *([f"All trials: `optuna-dashboard {journal} --host 127.0.0.1`"] if journal.exists() else []),
        *(["## Figures"] if found.figures else []),
        *(f"![{p.stem}](figures/{p.name})\n\n{_ABOUT.get(p.stem.split('-')[0], '')}" for p in found.figures),
        *(["## Left out", "\n".join(f"- {note}" for note in found.notes)] if found.notes else []),
    ]
    path = loaded.folder / FILE
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4g}"


def _found(loaded: LoadedTune, found: Findings) -> list[str]:
    best, names = found.best, list(loaded.cfg.objectives)
    if best is None:
        return ["No trial was finished, so there is nothing to choose from."]
    said = best.in_words(names)
    rows = [[f"`{key}`", f"`{value}`"] for key, _, value in (o.partition("=") for o in best.overrides)]
    parts = [
        f"{said[0].upper()}{said[1:]}. {found.how}",
        markdown(["key", "value"], rows) if rows else "It changes nothing.",
    ]
    if best.feasible:
        parts.append(f"`best.yaml` runs it as it is:\n\n```\n{best_command(loaded, best)}\n```")
    if len(names) > 1 and len(found.chosen) > 1:
        others = [[str(c.trial.number), *map(_number, c.trial.values), ", ".join(c.overrides)] for c in found.chosen]
        parts.append("Re-evaluated, in this order:\n\n" + markdown(["trial", *names, "overrides"], others))
    return parts


def _confirmed(loaded: LoadedTune, done: Confirmation) -> list[str]:
    samples = loaded.cfg.confirm.samples or loaded.base.cfg.study.samples
    count = sum(map(len, done.paired.values()))
    level = 1 - ALPHA / max(1, count)
    together = f"all {count} intervals together at {1 - ALPHA:.0%}" if count > 1 else f"{1 - ALPHA:.0%}"
    parts = [
        "## Confirmed with fresh seeds",
        f"Seeds {', '.join(map(str, done.seeds))}, that no trial used, {samples} samples, the study's own training. "
        f"Differences to the {DEFAULT} are paired by seed; intervals are Student's t at {level:.1%} each ({together}).",
        _comparison(done),
        "\n".join(f"- {sentence}" for sentence in done.sentences),
    ]
    if done.screened:  # it chose who was compared, and its seeds are no part of the comparison
        rows = [[r.label, str(r.seed), *map(_number, r.values)] for r in done.screened]
        told = "The first round, with seeds that only chose which configuration is compared with the default:"
        parts.append(told + "\n\n" + markdown(["configuration", "seed", *loaded.cfg.objectives], rows))
    if done.failures:
        parts.append("Failed: " + "; ".join(f"{k} ({v})" for k, v in done.failures.items()))
    return parts


def _comparison(done: Confirmation) -> str:
    """The table of what was compared with the default: a row for each configuration and objective."""
    head = ["fresh seeds", "objective", "seeds", "mean", "default", "difference", "se", "interval", "verdict"]
    rows = [
        [label, p.objective, str(p.seeds), _number(p.mean), _number(p.default), f"{p.difference:+.4g}", _number(p.se),
         f"{p.low:+.4g} to {p.high:+.4g}" if p.seeds > 1 else "none", p.verdict]
        for label, parts in done.paired.items()
        for p in parts
    ]  # fmt: skip
    return markdown(head, rows)


def _how(loaded: LoadedTune, study: optuna.Study) -> str:
    cfg, now = loaded.cfg, tally(all_trials(study))
    goals = [f"{name} ({way})" for name, way in zip(cfg.objectives, loaded.directions, strict=True)]
    limits = f" Constraints: {', '.join(cfg.constraints)}." if cfg.constraints else ""
    pruner = cfg.pruner.kind if cfg.pruner.kind == "none" else f"{cfg.pruner.kind} on the {cfg.pruner.signal}"
    return (
        f"Objectives: {', '.join(goals)}.{limits} Sampler: {cfg.sampler}. Pruner: {pruner}. "
        f"Trials: {now.complete} finished, {now.pruned} pruned, {now.failed} failed, {now.lost} lost with their worker and "
        f"tried again. A trial trains with seed {cfg.seed} for {cfg.steps:.0%} of the study's steps and is scored on "
        f"{cfg.samples} samples."
    )
