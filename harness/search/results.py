"""What a search ends with: table, figures, re-evaluation, best configuration, report, tracking.

All of it may be done again, by another process or after a kill: every file is written whole from the storage and from
the studies of the re-evaluation, which go on where they were.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml

from harness.config.best import key_of
from harness.provenance import git_state
from harness.report.table import markdown
from harness.search.confirm import ALPHA, DEFAULT, Confirmation, confirm
from harness.search.confirm import FILE as CONFIRMED
from harness.search.figures import draw_all, draw_confirmation
from harness.search.loaded import LoadedTune
from harness.search.publish import SearchLog
from harness.search.trials import TABLES, Candidate, all_trials, candidates, tally, write_trials
from harness.store import write_text
from harness.study.outcome import Outcome
from harness.tracking.uri import redact, without_logins

REPORT, BEST = "report.md", "best.yaml"
_ABOUT = {
    "importances": "Importance by PED-ANOVA (Watanabe et al., 2023): how far the best trials (a tenth of them, or five) are "
    "from being spread as all trials are, in each dimension by itself; shares of the sum.",
    "slice": "Each dimension by itself; trials that break a constraint are grey.",
    "contour": "Pairs of the most important dimensions; colours between the trials are interpolated.",
    "confirm": "The default and the best configurations with fresh seeds; a line joins what has the same seed.",
}


@dataclass
class Findings:
    """What a search ended with."""

    chosen: list[Candidate]
    best: Candidate | None = None
    how: str = ""  # in words, how the best was chosen
    confirmation: Confirmation | None = None
    figures: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def finish(loaded: LoadedTune, study: optuna.Study, log: SearchLog) -> Outcome:
    """Write everything that a search ends with; raises `UserError` as the studies of the re-evaluation do."""
    cfg = loaded.cfg.confirm
    write_trials(loaded, study, log.settle())
    found = Findings(candidates(loaded, study, max(1, cfg.top)))
    found.figures, found.notes = draw_all(loaded, study)
    warning, asked = "no trial was finished: there is no best configuration", False
    if found.chosen:
        best = found.best = found.chosen[0]
        found.how = "Chosen by the search alone; its value is that of the best of many, and too good on average."
        asked = best.feasible and cfg.top > 0 and len(cfg.seeds) > 0
        warning = "" if best.feasible else f"{best.in_words(loaded)}; it is not re-evaluated"
        # The re-evaluation may take long. Until it is through, what an earlier one chose stays.
        if not (asked and (loaded.folder / BEST).exists()):
            write_best(loaded, best, found.how)
    if warning:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    write_report(loaded, study, found)
    if asked:
        _confirm(loaded, study, found)
        write_report(loaded, study, found)
    _log(loaded, study, log, found)
    failures = found.confirmation.failures if found.confirmation else {}
    return Outcome("\n\n".join(_found(loaded, found)), _places(loaded, found, log), dict(failures))


def _confirm(loaded: LoadedTune, study: optuna.Study, found: Findings) -> None:
    """Re-evaluate, and let the fresh seeds say which of the candidates `best.yaml` is."""
    done = found.confirmation = confirm(loaded, study, found.chosen)
    found.figures += filter(None, [draw_confirmation(loaded, study, done)])
    for winner in (c for c in found.chosen if c.label == done.winner):
        first = f"{len(loaded.cfg.confirm.screen)} seeds, then re-evaluated with" if done.screened else "the"
        among = f"Of the {len(found.chosen)} that the search put first the best by its mean over {first}"
        found.best = winner
        found.how = f"{among if len(found.chosen) > 1 else 'Re-evaluated with'} {len(done.seeds)} fresh seeds."
        write_best(loaded, winner, found.how, [dataclasses.asdict(p) for p in done.paired[winner.label]])


def _places(loaded: LoadedTune, found: Findings, log: SearchLog) -> list[str]:
    places = [f"report   {loaded.folder / REPORT}", f"trials   {loaded.folder / TABLES[0]}"]
    if found.best is not None:
        places += [f"best     {loaded.folder / BEST}", f"run it   {best_command(loaded, found.best)}"]
    if log.run:
        places.append(f"MLflow   {log.tracker.where}  (run {log.run})")
    return places


def _log(loaded: LoadedTune, study: optuna.Study, log: SearchLog, found: Findings) -> None:
    """Figures and files on the parent run, and how it ended."""
    for path in found.figures:
        log.tracker.log_file(log.run, path, "figures")
    for path in (loaded.folder / name for name in (REPORT, *TABLES, BEST, CONFIRMED)):
        if path.exists():
            log.tracker.log_file(log.run, path)
    now = tally(all_trials(study))
    tags: dict[str, Any] = {f"trials.{state}": now[state] for state in ("complete", "pruned", "failed")}
    tags |= {"best.trial": found.best and found.best.trial.number, "best.verdict": verdict(found) or None}
    log.tracker.set_tags(log.run, tags)
    log.tracker.finish(log.run, "FINISHED")


# ---- best.yaml -------------------------------------------------------------------------------------------------------
def best_command(loaded: LoadedTune, candidate: Candidate) -> str:
    """The command that runs the study with its best configuration, logins blotted out.

    Arguments of the search that set what it varied are left out, since they would win over the file.
    """
    folders = [part for folder in loaded.config_dirs for part in ("--config-dir", str(folder))]
    found = {key_of(o) for o in candidate.overrides}
    given = [redact(a) for a in loaded.base_args if key_of(a) not in found]
    path, here = loaded.folder / BEST, Path.cwd()
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
    path = loaded.folder / BEST
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
    return path


# ---- in words ---------------------------------------------------------------------------------------------------------
def write_report(loaded: LoadedTune, study: optuna.Study, found: Findings) -> Path:
    """Write `report.md` in the tune folder and return its path."""
    journal, done = loaded.folder / "journal.log", found.confirmation
    parts = [
        f"# Tuning {loaded.name}",
        f"`{without_logins(loaded.command)}`, at {git_state().label}",
        "## Found",
        *_found(loaded, found),
        *(_screened(loaded, done) if done and done.screened else []),
        "## Searched",
        markdown(
            ["key", "kind", "values", "only where"],
            [[f"`{key}`", d.kind, d.values, d.conditions] for key, d in loaded.cfg.space.items()],
        ),
        _how(loaded, study),
        *([f"All trials: `optuna-dashboard {journal} --host 127.0.0.1`"] if journal.exists() else []),
        *(["## Figures"] if found.figures else []),
        *(f"![{p.stem}](figures/{p.name})\n\n{_ABOUT.get(p.stem.split('-')[0], '')}".rstrip() for p in found.figures),
    ]
    path = loaded.folder / REPORT
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def verdict(found: Findings) -> str:
    """The answer in one sentence: is the configuration of `best.yaml` better than the default? Empty: nobody asked."""
    parts = found.confirmation.paired.get(found.best.label, []) if found.confirmation and found.best else []
    if not parts or not found.best:
        return ""
    said = parts[0].verdict if len(parts) == 1 else "; ".join(f"{p.objective}: {p.verdict}" for p in parts)
    seeds = min(p.seeds for p in parts)
    return f"Verdict on {found.best.label} with {seeds} fresh seed{'s' if seeds != 1 else ''}: {said}."


def _found(loaded: LoadedTune, found: Findings) -> list[str]:
    """The best and what the fresh seeds say of it, in paragraphs; what is left out."""
    best = found.best
    parts = ["No trial was finished, so there is nothing to choose from."]
    if best is not None:
        rows = [[f"`{key}`", f"`{value}`"] for key, _, value in (o.partition("=") for o in best.overrides)]
        table = markdown(["key", "value"], rows) if rows else "It changes nothing."
        parts = [f"{best.in_words(loaded)}. {found.how}", table]
        parts += [f"`best.yaml` runs it as it is:\n\n```\n{best_command(loaded, best)}\n```"] if best.feasible else []
    if found.confirmation is not None:
        parts += [verdict(found), *_confirmed(loaded, found.confirmation)]
    notes = "\n".join(f"- {note}" for note in found.notes)
    return [*filter(None, parts), *([notes] if notes else [])]


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4g}"


def _confirmed(loaded: LoadedTune, done: Confirmation) -> list[str]:
    samples = loaded.cfg.confirm.samples or loaded.base.cfg.study.samples
    count = sum(map(len, done.paired.values()))
    together = f"all {count} intervals together at {1 - ALPHA:.0%}" if count > 1 else f"{1 - ALPHA:.0%}"
    head = ["fresh seeds", "objective", "seeds", "mean", "default", "difference", "se", "interval", "verdict"]
    rows = [
        [label, p.objective, str(p.seeds), _number(p.mean), _number(p.default), f"{p.difference:+.4g}", _number(p.se),
         f"{p.low:+.4g} to {p.high:+.4g}" if p.seeds > 1 else "none", p.verdict]
        for label, parts in done.paired.items()
        for p in parts
    ]  # fmt: skip
    failed = "; ".join(f"{k} ({v})" for k, v in done.failures.items())
    return [
        f"Seeds {', '.join(map(str, done.seeds))}, which no trial used, {samples} samples, the study's own training. "
        f"Differences to the {DEFAULT} are paired by seed; intervals are Student's t at {1 - ALPHA / max(1, count):.1%} each "
        f"({together}).",
        markdown(head, rows),
        "\n".join(f"- {remark}" for remark in done.remarks),
        f"Failed: {failed}" if failed else "",
    ]


def _screened(loaded: LoadedTune, done: Confirmation) -> list[str]:
    """The first round: it chose who was compared, and its seeds are no part of the comparison."""
    names = [f"value.{name}" for name in loaded.cfg.objectives]
    rows = [[run["label"], str(run["seed"]), *(_number(run[name]) for name in names)] for run in done.screened]
    told = "The first round, with seeds that only chose which configuration is compared with the default:"
    return [told, markdown(["configuration", "seed", *loaded.cfg.objectives], rows)]


def _how(loaded: LoadedTune, study: optuna.Study) -> str:
    cfg, now = loaded.cfg, tally(all_trials(study))
    goals = [f"{name} ({way})" for name, way in zip(cfg.objectives, loaded.directions, strict=True)]
    limits = f" Constraints: {', '.join(cfg.constraints)}." if cfg.constraints else ""
    pruner = cfg.pruner.kind if cfg.pruner.kind == "none" else f"{cfg.pruner.kind} on the {cfg.pruner.signal}"
    return (
        f"Objectives: {', '.join(goals)}.{limits} Sampler: {cfg.sampler}. Pruner: {pruner}. "
        f"Trials: {now['complete']} finished, {now['pruned']} pruned, {now['failed']} failed, {now['lost']} lost and tried "
        f"again. A trial trains with seed {cfg.seed} for {cfg.steps:.0%} of the study's steps and is scored on {cfg.samples} "
        "samples."
    )
