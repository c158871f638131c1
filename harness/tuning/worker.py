"""One worker: claims a trial, runs it, records what came of it, and begins again until the wanted number is there.

`python -m harness.tuning.worker` reads one line, its `Spec`, from standard input; standard output is a channel of JSON lines
to whoever started it.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from harness.errors import EXIT_CODE, UserError
from harness.jobs.pool import die_with_parent
from harness.store import write_text
from harness.tuning.claims import Claims, give_up, put_back
from harness.tuning.presence import Presence
from harness.tuning.process import Leave, Say, Spec, Stopped, channel
from harness.tuning.samplers import CONSTRAINTS, make_pruner, make_sampler
from harness.tuning.storage import Opened, is_away, open_study
from harness.tuning.table import RUN_ID

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune

#: Seconds between two looks at a study in which nothing is to be had now.
_PATIENCE = 1.0
_AWAY = 60.0  # seconds for which a storage that was open may be away


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def patiently(action: Callable[[], Any]) -> Any:
    """Do it again for a while where a database is away: a result must not be lost to a restart of the server."""
    until = time.monotonic() + _AWAY
    while True:
        try:
            return action()
        except Exception as error:
            if not is_away(error) or time.monotonic() > until:
                raise
            time.sleep(2)


class Worker:
    """Runs trials of one study."""

    def __init__(self, loaded: LoadedTune, opened: Opened, spec: Spec, say: Say, leave: Leave) -> None:
        self.loaded, self.opened, self.spec, self.say, self.leave = loaded, opened, spec, say, leave
        cfg = loaded.cfg
        self._said = 0.0
        self.claims = Claims(opened, loaded.folder / "workers", cfg.trials, cfg.retries, spec.grace)
        module, _, name = spec.runner.partition(":")
        self._made_by = importlib.import_module(module)
        with leave.at_once():
            self.runner = getattr(self._made_by, name)(loaded)
            # What all trials need; limits that nothing can meet are refused here, and not once for each trial.
            self.runner.prepare(self._progress_of(None))
        self.number: int | None = None
        opened.study.pruner = make_pruner(cfg, loaded.session.cfg.scale.steps)

    def work(self) -> None:
        """Run trials until the wanted number is there; `Stopped` where somebody asks it to leave."""
        with Presence(self.claims.workers, self.spec.index, self.spec.beat, self._beat) as presence:
            self.say(name=presence.name)
            while self.step(presence.name):
                if patiently(self.claims.finished):
                    return
        raise Stopped

    def step(self, name: str) -> bool:
        """One trial, or a moment's wait where none is to be had; False where it was asked to leave."""
        try:
            self.leave.check()
            claimed = patiently(lambda: self.claims.claim(name, self._prepare, self._suggest))
            if claimed is not None:
                self._run(*claimed)
            else:
                with self.leave.at_once():
                    time.sleep(_PATIENCE)
        except Stopped:
            return False
        return True

    def _beat(self) -> None:
        if (number := self.number) is not None:
            self.opened.beat(number)

    def _prepare(self, number: int) -> None:
        self.opened.study.sampler = make_sampler(self.loaded.cfg, number)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        from harness.tuning.space import suggest

        return suggest(trial, self.loaded.cfg)

    def _run(self, trial: optuna.Trial, params: dict[str, Any]) -> None:
        from harness.tuning.publish import TrialLog

        self.number = trial.number
        self.say(trial=trial.number, text="begins", done=0, total=0)
        log = TrialLog(self.spec.run_id, self.loaded)
        try:
            run_id = log.open(trial.number, params)
            if run_id:
                trial.set_user_attr(RUN_ID, run_id)
            with self.leave.at_once():
                result = self.runner.run(params, self._report_of(trial), self._progress_of(trial.number))
            self._complete(trial, result)
            log.finish(result, "complete", "")
        except self._made_by.Pruned as reason:
            text = str(reason)
            patiently(lambda: self._prune(trial, text))
            log.finish(None, "pruned", text)
        except Stopped:
            put_back(self.opened, trial)
            log.finish(None, "killed", "stopped")
            raise
        except optuna.exceptions.UpdateFinishedTrialError:
            log.finish(None, "killed", "taken for dead, and begun again by another worker")
        except Exception as error:
            reason = self._reason(trial.number, error)
            patiently(lambda: give_up(self.opened, trial, reason))
            log.finish(None, "failed", reason)
            self.say(failed=trial.number, reason=reason)
        finally:
            self.number = None
            self.say(ended=trial.number)

    def _complete(self, trial: optuna.Trial, result: Any) -> None:
        """Keep all that is known of a finished trial with it, then finish it."""
        if not all(math.isfinite(v) for v in result.values):
            raise UserError(f"its objective is not a number ({', '.join(map(str, result.values))})")
        # Optuna takes no NaN here; a constraint on what could not be measured is not met.
        constraints = [c if math.isfinite(c) else sys.float_info.max for c in result.constraints]
        facts = {
            "scores": result.scores,
            "seconds": result.seconds,
            "trained": result.trained,
            CONSTRAINTS: constraints,
        }

        def keep() -> None:
            try:
                for name, value in facts.items():
                    trial.set_user_attr(name, value)
                self.opened.study.tell(trial, list(result.values))
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
                # Done at an earlier attempt, of which the answer was lost? Nobody else completes this trial.
                state = self.opened.storage.get_trial(self.opened.trial_id(trial.number)).state
                if state == TrialState.RUNNING:
                    raise
                if state != TrialState.COMPLETE:
                    raise optuna.exceptions.UpdateFinishedTrialError from None

        patiently(keep)

    def _prune(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("pruned", reason)
        self.opened.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def _report_of(self, trial: optuna.Trial) -> Callable[[int, float], bool] | None:
        """Whether a trial that has come to this value at this step had better be given up."""
        if self.loaded.cfg.pruner.kind == "none":
            return None

        def report(step: int, value: float) -> bool:
            trial.report(value, step)
            return trial.should_prune()

        return report

    def _progress_of(self, number: int | None) -> Callable[[str, int, int], None]:
        def progress(text: str, done: int, total: int) -> None:
            if time.monotonic() - self._said > 0.5:
                self._said = time.monotonic()
                self.say(trial=number, text=text, done=done, total=total)

        return progress

    def _reason(self, number: int, error: Exception) -> str:
        """Why a trial failed, in one line; what nobody expected is kept in full in `errors/`."""
        line = " ".join(str(error).split())
        if isinstance(error, UserError):
            return line
        from harness.training.loop import Diverged

        if isinstance(error, Diverged):
            return line
        write_text(self.loaded.folder / "errors" / f"trial-{number}.txt", traceback.format_exc())
        return f"{type(error).__name__}: {line[:300]}"


def run_worker(spec: Spec, say: Say) -> None:
    """Load the tuning of `spec` and work on it; raises `UserError` for what is refused, `Stopped` when told to leave."""
    leave = Leave()
    leave.install(owned=spec.parent is not None)
    # Whoever started this worker has checked what takes long to check.
    loaded = _named(spec.load)(spec.arguments, [Path(folder) for folder in spec.config_dirs], False)
    opened = open_study(loaded, directions_of(loaded), spec.beat, spec.grace)
    Worker(loaded, opened, spec, say, leave).work()


def directions_of(loaded: LoadedTune) -> list[str]:
    """'minimize' or 'maximize' for each objective."""
    from harness.tuning.objective import directions

    return directions(loaded)


def main() -> int:
    """Exit codes: 0 the wanted number of trials is there, 2 refused (one line on standard error), 130 told to leave."""
    spec = Spec.of_json(sys.stdin.buffer.readline())
    if spec.parent is not None:
        die_with_parent(spec.parent)
    try:
        run_worker(spec, channel())
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_CODE
    except Stopped:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
