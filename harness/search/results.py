"""What happens once the trials are there: table, figures, re-evaluation, best configuration, report, tracking.

All of it may be done again, by another process or after a kill: every file is written whole from the storage and from
the studies of the re-evaluation, which go on where they were.
"""

from __future__ import annotations

import sys

import optuna
import pandas as pd

from harness.search.best import FILE as BEST_FILE
from harness.search.best import best_command, candidates, in_words, write_best
from harness.search.confirm import FILE as CONFIRM_FILE
from harness.search.confirm import Confirmation, confirm
from harness.search.figures import draw_all, draw_confirmation
from harness.search.loaded import LoadedTune
from harness.search.paired import BEATS, UNKNOWN, WORSE
from harness.search.publish import SearchLog
from harness.search.report import Findings, comparison, write_report
from harness.search.table import FILES as TABLES
from harness.search.table import write_trials
from harness.search.trials import Tally, all_trials, tally
from harness.study.outcome import Outcome


def finish(loaded: LoadedTune, study: optuna.Study, log: SearchLog) -> Outcome:
    """Write everything that a search ends with; raises `UserError` as the studies of the re-evaluation do."""
    runs = log.settle()
    frame = write_trials(loaded, study, runs)
    found = Findings(candidates(loaded, study, max(1, loaded.cfg.confirm.top)))
    several = len(loaded.cfg.objectives) > 1
    found.figures, found.notes = draw_all(loaded, study)
    if found.chosen:
        found.best = found.chosen[0]
        found.how = "Chosen by the search alone; its value is that of the best of many, and too good on average."
        # Before the re-evaluation, which may take long: what is known so far.
        write_best(loaded, found.best, found.how)
        if not found.best.feasible:
            _warn(f"{in_words(found.best, loaded, several)}; it is not re-evaluated")
    else:
        _warn("no trial was finished: there is no best configuration")
    write_report(loaded, study, found)
    if found.best is not None and found.best.feasible and loaded.cfg.confirm.top > 0 and loaded.cfg.confirm.seeds:
        drawn = draw_confirmation(loaded, study, _confirm(loaded, study, found))
        found.figures += [drawn] if drawn else []
        write_report(loaded, study, found)
    _log(loaded, log, found, frame, tally(all_trials(study)))
    failures = found.confirmation.failures if found.confirmation else {}
    return Outcome(_text(loaded, found, several), _places(loaded, found, log), dict(failures))


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _confirm(loaded: LoadedTune, study: optuna.Study, found: Findings) -> Confirmation:
    """Re-evaluate, and let the fresh seeds say which of the candidates `best.yaml` is."""
    done = found.confirmation = confirm(loaded, study, found.chosen)
    winner = next((c for c in found.chosen if c.label == done.winner), None)
    if winner is None:
        return done
    found.best = winner
    screen = loaded.cfg.confirm.screen
    chosen = f"Chosen of the {len(found.chosen)} that the search put first by its mean over "
    if len(found.chosen) == 1:
        found.how = f"Re-evaluated with {len(done.seeds)} fresh seeds."
    elif screen:
        found.how = f"{chosen}{len(screen)} seeds, and re-evaluated with {len(done.seeds)} others."
    else:
        found.how = f"{chosen}{len(done.seeds)} fresh seeds."
    names = ("objective", "seeds", "mean", "default", "difference", "low", "high", "verdict")
    rows = [{name: getattr(p, name) for name in names} for p in done.paired[winner.label]]
    write_best(loaded, winner, found.how, rows)
    return done


def _text(loaded: LoadedTune, found: Findings, several: bool) -> str:
    """What is printed: the best, its overrides, the verdicts."""
    if found.best is None:
        return "no result"
    lines = [in_words(found.best, loaded, several), *(f"  {o}" for o in found.best.overrides)]
    if found.confirmation is not None:
        lines += ["", comparison(found.confirmation), "", verdict(found)]
        lines += [s for s in found.confirmation.sentences if "constraint" in s or "finished" in s]
    return "\n".join([*lines, *found.notes])


def verdict(found: Findings) -> str:
    """The answer in one sentence: is the configuration of `best.yaml` better than the default?"""
    done, best = found.confirmation, found.best
    if done is None or best is None or best.label not in done.paired:
        return "nothing was re-evaluated"
    parts = done.paired[best.label]
    said = {p.verdict for p in parts}
    seeds = min(p.seeds for p in parts)
    if len(parts) == 1 or len(said) == 1:
        word = parts[0].verdict
    elif WORSE in said or UNKNOWN in said:
        word = "; ".join(f"{p.objective}: {p.verdict}" for p in parts)
    else:
        which = [p.objective for p in parts if p.verdict == BEATS]
        word = f"{BEATS} in {', '.join(which)}; no difference shown in the rest"
    return f"verdict on {best.label} with {seeds} fresh seed{'s' if seeds != 1 else ''}: {word}"


def _places(loaded: LoadedTune, found: Findings, log: SearchLog) -> list[str]:
    places = [f"report   {loaded.folder / 'report.md'}", f"trials   {loaded.folder / TABLES[0]}"]
    if found.best is not None:
        places += [f"best     {loaded.folder / BEST_FILE}", f"run it   {best_command(loaded, found.best)}"]
    if log.run:
        places.append(f"MLflow   {log.tracker.where}  (run {log.run})")
    return places


def _log(loaded: LoadedTune, log: SearchLog, found: Findings, frame: pd.DataFrame, now: Tally) -> None:
    """Figures, table and files on the parent run, and how it ended."""
    names = ["report.md", *TABLES, *([BEST_FILE] if found.best else [])]
    names += [CONFIRM_FILE] if found.confirmation else []
    for path in found.figures:
        log.tracker.log_file(log.run, path, "figures")
    for path in (loaded.folder / name for name in names):
        log.tracker.log_file(log.run, path)
    rows = frame.astype(object).where(frame.notna(), None).astype(str).to_dict("index")
    log.tracker.log_samples(
        log.run, [{str(key): value for key, value in row.items()} for row in rows.values()], "trials"
    )
    best = found.best
    log.tracker.set_tags(
        log.run,
        {
            "trials.complete": now.complete,
            "trials.pruned": now.pruned,
            "trials.failed": now.failed,
            "best.trial": None if best is None else best.trial.number,
            "best.verdict": None if found.confirmation is None else verdict(found),
        },
    )
    log.finish("FINISHED")
