"""One trial of a search: train (unless its weights are there), sample, score, and read what it is judged by.

Every step leaves files in the trial's own folder, named by its values, and in the study's folder of weights: a trial that is
run again finds what was finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import UserError
from harness.interface import Method
from harness.jobs.locks import waiting_for
from harness.metrics.base import Samples, ScoreContext
from harness.provenance import short_hash
from harness.store import append_jsonl, read_json, read_jsonl, write_json
from harness.study import match, steps
from harness.study.cells import Cell, make_cells
from harness.study.rows import make_rows
from harness.study.session import Session
from harness.training.loop import Diverged, step_generator
from harness.tuning.objective import data_values, evaluate, needs_data, needs_facts
from harness.tuning.schema import ObjectiveConfig
from harness.tuning.space import overrides_of

if TYPE_CHECKING:
    from harness.tuning.load import LoadedTune

Progress = Callable[[str, int, int], None]
#: Told a training step and the value there; answers whether the trial should be ended.
Report = Callable[[int, float], bool]
_BOUND = "valid/bound_nats_per_token"


class Pruned(Exception):
    """The trial was ended early, since it did worse than others at the same step."""


@dataclass
class TrialResult:
    """What came of a trial.

    `values` are its objectives and `constraints` what they are broken by, in the search's order; `scores` all numbers as
    `<column>@<nfe>`; `seconds` what `train`, `sample` and `score` took here; `trained` says whether a step was trained
    here; `curves` are the lines of training (`step`, `time_ms`, `values`).
    """

    values: list[float]
    constraints: list[float]
    scores: dict[str, float]
    seconds: dict[str, float]
    trained: bool
    curves: list[dict[str, Any]] = field(default_factory=list)


class TrialRunner:
    """Runs trials of one search, one after another; what they have in common (data, judge, held-out rows) is made once."""

    def __init__(self, loaded: LoadedTune) -> None:
        self.loaded = loaded
        self._latest: Session = loaded.session
        self._judge: Any = None  # the one that is prepared
        torch.set_num_threads(loaded.base.cfg.compute.threads)

    def prepare(self, progress: Progress) -> None:
        """Make what all trials need: the judge, and the data's own scores if they are asked for. Others wait.

        Raises `UserError` for limits that nothing can satisfy.
        """
        if needs_data(self.loaded.cfg):
            data_values(self.loaded, progress)
        session = self.loaded.session
        if self._judge is not session.judge:
            # A judge that is not trained yet is trained by one worker.
            with waiting_for(self.loaded.folder / "judge.lock", lambda: progress("waiting for the judge", 0, 0)):
                session.judge.prepare(session.data, session.cache, session.numerics.device, lambda t: progress(t, 0, 0))
            self._judge = session.judge

    def run(self, params: dict[str, Any], report: Report | None, progress: Progress) -> TrialResult:
        """Run the configuration `params` (key to value, as `harness.tuning.space.suggest` gives it) to its end.

        `report` is asked at each validation whether to go on. Raises `Pruned`; `Diverged` where the loss stops being a
        number; `UserError` for values that do not go together and for an objective that has no value.
        """
        self.prepare(progress)
        session = self._session(params)
        cell = make_cells(session)[0]
        seconds = {"train": 0.0, "sample": 0.0, "score": 0.0}
        with _timed(seconds, "train"):
            trained = self._train(session, cell, report, progress)
        with _timed(seconds, "sample"):
            steps.sample_cell(session, cell, progress)
        with _timed(seconds, "score"):
            self._ready_judge(session, progress)
            if needs_facts(self.loaded.cfg):
                steps.train_cell(session, cell, progress)  # the weights are there: this measures
            steps.score_cell(session, cell, progress)
        values, constraints, scores = evaluate(self.loaded, make_rows(session, cell, session._protocol))
        return TrialResult(values, constraints, scores, seconds, trained, read_jsonl(cell.curves))

    def _session(self, params: dict[str, Any]) -> Session:
        overrides = overrides_of(params, self.loaded.cfg)
        key = short_hash([self.loaded.identity, overrides], 12)
        session = Session(self.loaded.trial_tree(overrides, f"trials/{key}"), self.loaded.weights)
        session.adopt(self.loaded.session)
        session.adopt(self._latest)  # what the search varies may be the same in two trials that follow each other
        self._latest = session
        return session

    def _ready_judge(self, session: Session, progress: Progress) -> None:
        """Prepare the session's judge, unless it is the one that is prepared already."""
        if session.judge is self._judge:
            session._protocol = steps.write_protocol(session)
        else:
            session._protocol = steps.prepare_judge(session, progress)

    # ---- training -------------------------------------------------------------------------------------------------
    def _train(self, session: Session, cell: Cell, report: Report | None, progress: Progress) -> bool:
        if cell.failure.exists():
            raise Diverged(read_json(cell.failure)["reason"])
        told = None
        if report is not None and self.loaded.cfg.pruner.kind != "none" and cell.trained:
            told = self._signal(session, cell, report)
        try:
            return steps.train_weights(session, cell, progress, told)
        except Diverged as error:
            write_json(cell.failure, {"reason": str(error)})
            raise
        except Pruned:
            # Its curves stay: trained again, it says the same.
            (cell.home / "train.safetensors").unlink(missing_ok=True)
            raise

    def _signal(self, session: Session, cell: Cell, report: Report) -> Callable[[Method, int, dict[str, float]], None]:
        """What is called at each validation: reports the bound or an early score, and ends a trial that is told to.

        Values of an earlier attempt are reported first, so that others are compared with the whole curve.
        """
        # Where steps are matched in FLOPs trials train different numbers of them: what is compared are shares of the budget,
        # in the steps that the search is told of.
        pruner, steps = self.loaded.cfg.pruner, session.cfg.scale.steps
        plan: list[int] = []  # the trial's own number of steps, once training has settled it
        early = session.folder / "early.jsonl"
        known = {line["step"]: line["value"] for line in read_jsonl(early)}
        reported: set[int] = set()

        def tell(at: int, value: float) -> None:
            if at in reported:
                return
            reported.add(at)
            step = round(at * steps / plan[0])
            if report(step, value) and step >= pruner.warmup * steps and step < steps:
                raise Pruned(f"at step {step} of {steps}, with {pruner.signal} {value:.4g}")

        def validated(method: Method, step: int, values: dict[str, float]) -> None:
            if not plan:
                plan.append(match.read_plan(session, cell).steps)
            for earlier in sorted(s for s in known if s < step):
                tell(earlier, known[earlier])
            if step not in known:
                known[step] = _bound(method, values) if pruner.signal == "bound" else self._early_score(session, method)
                append_jsonl(early, {"step": step, "value": known[step]})
            tell(step, known[step])

        return validated

    @torch.no_grad()
    def _early_score(self, session: Session, method: Method) -> float:
        """The objective's column of a few samples at its budget."""
        o: ObjectiveConfig = next(iter(self.loaded.cfg.objectives.values()))
        count = min(self.loaded.cfg.pruner.samples, session.cfg.study.samples)
        metric = next(m for m in session.metrics if any(c.name == o.column for c in m.columns))
        if session.judge is not self._judge:
            session.judge.prepare(session.data, session.cache, session.numerics.device, lambda _: None)
            self._judge = session.judge
        heat = session.cfg.study.temperatures[0] if o.temperature is None else o.temperature
        generator = step_generator(session.numerics.device, session.cfg.study.sampling_seed, 7)
        with session.numerics.autocast():
            x_NL = method.sample(count, o.nfe, generator, heat).x_NL.cpu().numpy()
        reference = Samples(session.reference.x_NL[:count], session.reference.texts[:count])
        context = ScoreContext(session.data, reference, session.judge, session.cache, session.cfg.study.sampling_seed)
        samples = Samples(x_NL, [session.data.decode(row) for row in x_NL.tolist()])
        return float(metric.score(samples, context).values[o.column][0])


def _bound(method: Method, values: dict[str, float]) -> float:
    if _BOUND not in values:
        raise UserError(f"{method.title} has no bound to prune on; use tune.pruner.signal=score")
    return values[_BOUND]


class _timed:  # noqa: N801 - reads as a verb
    """Adds the seconds of a block to one entry."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._began
