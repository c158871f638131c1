"""What happens once the trials are there: table, figures, re-evaluation, best configuration, report, tracking.

All of it may be done again, by another process or after a kill: every file is written whole from the storage and from
the studies of the re-evaluation, which go on where they were.
"""

from __future__ import annotations

import sys
from typing import Any

import optuna

from harness.search.best import FILE as BEST_FILE
from harness.search.best import best_command, candidates, write_best
from harness.search.confirm import FILE as CONFIRM_FILE
from harness.search.confirm import confirm
from harness.search.figures import draw_all, draw_confirmation
from harness.search.loaded import LoadedTune
from harness.search.publish import SearchLog
from harness.search.report import FILE as REPORT_FILE
from harness.search.report import Findings, printed, write_report
from harness.search.trials import TABLES, all_trials, tally, write_trials
from harness.study.outcome import Outcome
from harness.tracking.uri import redact


def finish(loaded: LoadedTune, study: optuna.Study, log: SearchLog) -> Outcome:
    """Write everything that a search ends with; raises `UserError` as the studies of the re-evaluation do."""
    cfg = loaded.cfg.confirm
    write_trials(loaded, study, log.settle())
    found = Findings(candidates(loaded, study, max(1, cfg.top)))
    found.figures, found.notes = draw_all(loaded, study)
    if found.chosen:
        found.best = found.chosen[0]
        found.how = "Chosen by the search alone; its value is that of the best of many, and too good on average."
        # Before the re-evaluation, which may take long: what is known so far.
        write_best(loaded, found.best, found.how)
        if not found.best.feasible:
            _warn(f"{found.best.in_words(list(loaded.cfg.objectives))}; it is not re-evaluated")
    else:
        _warn("no trial was finished: there is no best configuration")
    write_report(loaded, study, found)
    if found.best is not None and found.best.feasible and cfg.top > 0 and cfg.seeds:
        _confirm(loaded, study, found)
        write_report(loaded, study, found)
    _log(loaded, study, log, found)
    failures = found.confirmation.failures if found.confirmation else {}
    return Outcome(printed(loaded, found), _places(loaded, found, log), dict(failures))


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _confirm(loaded: LoadedTune, study: optuna.Study, found: Findings) -> None:
    """Re-evaluate, and let the fresh seeds say which of the candidates `best.yaml` is."""
    done = found.confirmation = confirm(loaded, study, found.chosen)
    found.figures += filter(None, [draw_confirmation(loaded, study, done)])
    for winner in (c for c in found.chosen if c.label == done.winner):
        first = f"{len(loaded.cfg.confirm.screen)} seeds, then re-evaluated with" if done.screened else "the"
        among = f"Of the {len(found.chosen)} that the search put first the best by its mean over {first}"
        found.best = winner
        found.how = f"{among if len(found.chosen) > 1 else 'Re-evaluated with'} {len(done.seeds)} fresh seeds."
        names = ("objective", "seeds", "mean", "default", "difference", "low", "high", "verdict")
        rows = [{name: getattr(p, name) for name in names} for p in done.paired[winner.label]]
        write_best(loaded, winner, found.how, rows)


def _places(loaded: LoadedTune, found: Findings, log: SearchLog) -> list[str]:
    places = [f"report   {loaded.folder / REPORT_FILE}", f"trials   {loaded.folder / TABLES[0]}"]
    if found.best is not None:
        places += [f"best     {loaded.folder / BEST_FILE}", f"run it   {best_command(loaded, found.best)}"]
    if log.run:
        base = loaded.base.cfg
        where = base.tracking.uri and redact(base.tracking.uri) or f"python -m harness.tracking.ui {base.runs_dir}"
        places.append(f"MLflow   {where}  (run {log.run})")
    return places


def _log(loaded: LoadedTune, study: optuna.Study, log: SearchLog, found: Findings) -> None:
    """Figures and files on the parent run, and how it ended."""
    for path in found.figures:
        log.tracker.log_file(log.run, path, "figures")
    for path in (loaded.folder / name for name in (REPORT_FILE, *TABLES, BEST_FILE, CONFIRM_FILE)):
        if path.exists():
            log.tracker.log_file(log.run, path)
    now = tally(all_trials(study))
    tags: dict[str, Any] = {f"trials.{state}": getattr(now, state) for state in ("complete", "pruned", "failed")}
    tags |= {"best.trial": found.best and found.best.trial.number, "best.verdict": found.confirmation and found.verdict}
    log.tracker.set_tags(log.run, tags)
    log.finish("FINISHED")
