"""One trial of a search: train (unless its weights are there), sample, score, and read what it is judged by.

Every step leaves files in the trial's own folder, named by its values, and in the study's folder of weights: a trial that is
run again finds what was finished. A worker asks the command whether to go on, and knows nothing of storages and databases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.errors import JobError, UserError
from harness.interface import Method
from harness.jobs.locks import waiting_for
from harness.jobs.pool import Serve, Talk
from harness.metrics.base import Samples, ScoreContext
from harness.search.context import Context, Job
from harness.search.objective import data_values, evaluate, needs_data, needs_facts
from harness.search.schema import ObjectiveConfig
from harness.store import append_jsonl, read_json, read_jsonl, write_json
from harness.study import match, steps
from harness.study.cells import Cell, make_cells
from harness.study.made import made_by
from harness.study.rows import make_rows
from harness.study.session import Session
from harness.study.steps import Progress
from harness.training.loop import Diverged
from harness.training.seeds import step_generator

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
    here; `pruned` why it was ended early, and then there is nothing else.
    """

    values: list[float] = field(default_factory=list)
    constraints: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    trained: bool = False
    pruned: str = ""


def begin(context: Context) -> Serve:
    """A worker of the search (see `harness.jobs.pool`); a job that is no `Job` prepares what all trials need."""
    runner = TrialRunner(context)

    def serve(job: Any, talk: Talk) -> TrialResult | None:
        if not isinstance(job, Job):
            runner.prepare(talk.progress)
            return None
        runner.prepare(talk.progress)
        try:
            return runner.run(job, lambda step, value: talk.ask((step, value)), talk.progress)
        except Pruned as reason:
            return TrialResult(pruned=str(reason))
        except UserError as error:  # values that do not go together, an objective without a value: this trial alone
            raise JobError(" ".join(str(error).split())) from error

    return serve


class TrialRunner:
    """Runs trials of one search, one after another; what they have in common (data, judge, held-out rows) is made once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._latest: Session = context.session
        torch.set_num_threads(context.session.cfg.compute.threads)

    def prepare(self, progress: Progress) -> None:
        """Make what all trials need: the judge, and the data's own scores if they are asked for. Others wait.

        Raises `UserError` for limits that nothing can satisfy.
        """
        if needs_data(self.context.cfg):
            data_values(self.context, progress)
        # A judge that is not trained yet is trained by one worker.
        with waiting_for(self.context.folder / "judge.lock", lambda: progress("waiting for the judge", 0, 0)):
            self.context.session.ready_judge(lambda text: progress(text, 0, 0))

    def run(self, job: Job, report: Report | None, progress: Progress) -> TrialResult:
        """Run one configuration to its end; `report` is asked at each validation whether to go on.

        Raises `Pruned`; `Diverged` where the loss stops being a number; `UserError` for values that do not go together and
        for an objective that has no value.
        """
        session = self._session(job)
        cell = make_cells(session)[0]
        seconds = {"train": 0.0, "sample": 0.0, "score": 0.0}
        with _timed(seconds, "train"):
            trained = self._train(session, cell, report, progress)
        with _timed(seconds, "sample"):
            steps.draw_cell(session, cell, progress)
        with _timed(seconds, "score"):
            protocol = steps.prepare_judge(session, progress)
            if needs_facts(self.context.cfg):
                steps.train_cell(session, cell, progress)  # the weights are there: what they cost is written down
                steps.measure_cell(session, cell, progress)
            steps.score_cell(session, cell, progress)
        values, constraints, scores = evaluate(self.context, make_rows(session, cell, protocol))
        return TrialResult(values, constraints, scores, seconds, trained)

    def _session(self, job: Job) -> Session:
        session = Session(job.tree, self.context.weights)
        session.adopt(self.context.session)
        session.adopt(self._latest)  # what the search varies may be the same in two trials that follow each other
        self._latest = session
        return session

    # ---- training -------------------------------------------------------------------------------------------------
    def _train(self, session: Session, cell: Cell, report: Report | None, progress: Progress) -> bool:
        weights = cell.weights
        if weights.failure.exists():
            raise Diverged(read_json(weights.failure)["reason"])
        told = None
        if report is not None and self.context.cfg.pruner.kind != "none" and weights.trained:
            told = self._signal(session, cell, report)
        try:
            return steps.train_weights(session, weights, progress, told)
        except Diverged as error:
            write_json(weights.failure, {"reason": str(error), "made": made_by(session, "train", weights)})
            raise
        except Pruned:
            # Its curves stay: trained again, it says the same.
            weights.checkpoint.unlink(missing_ok=True)
            raise

    def _signal(self, session: Session, cell: Cell, report: Report) -> Callable[[Method, int, dict[str, float]], None]:
        """What is called at each validation: reports the bound or an early score, and ends a trial that is told to.

        Values of an earlier attempt are reported first, so that others are compared with the whole curve.
        """
        # Where steps are matched in FLOPs trials train different numbers of them: what is compared are shares of the budget,
        # in the steps that the search is told of.
        pruner, steps = self.context.cfg.pruner, session.cfg.scale.steps
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
                plan.append(match.read_plan(cell.weights).steps)
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
        o: ObjectiveConfig = next(iter(self.context.cfg.objectives.values()))
        count = min(self.context.cfg.pruner.samples, session.cfg.study.samples)
        metric = next(m for m in session.metrics if any(c.name == o.column for c in m.columns))
        judge = session.ready_judge(lambda _: None)
        heat = session.cfg.study.temperatures[0] if o.temperature is None else o.temperature
        generator = step_generator(session.numerics.device, session.cfg.study.sampling_seed, 7)
        sampler = session.sampler(method, *self.context.cfg.row)
        with session.numerics.autocast():
            x_NL = sampler.draw(count, o.nfe, generator, heat).x_NL.cpu().numpy()
        reference = Samples(session.reference.x_NL[:count], session.reference.texts[:count])
        context = ScoreContext(session.data, reference, judge, session.cache, session.cfg.study.sampling_seed)
        samples = Samples(x_NL, [session.data.decode(row) for row in x_NL.tolist()])
        return float(metric.score(samples, context).values[o.column][0])


def _bound(method: Method, values: dict[str, float]) -> float:
    if _BOUND not in values:
        raise UserError(f"{method.title} has no bound to prune on; use tune.pruner.signal=score")
    return values[_BOUND]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds of the block to one entry."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - began
