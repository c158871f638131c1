"""One trial of a search: train (unless its weights are there), sample, score, and read what it is judged by.

Every step leaves files in the trial's own folder, named by its values, and in the study's folder of weights: a trial that is
run again finds what was finished. A worker asks the command whether to go on, and knows nothing of storages and databases.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.errors import JobError, UserError
from harness.interface import Method
from harness.jobs.locks import waiting_for
from harness.jobs.pool import Serve, Talk
from harness.metrics.base import Samples, ScoreContext
from harness.search.loaded import Context
from harness.search.objective import data_values, evaluate, needs_data, needs_facts
from harness.search.schema import ObjectiveConfig
from harness.store import read_json, write_json
from harness.study import match, steps
from harness.study.cells import Cell, make_cells
from harness.study.rows import make_rows
from harness.study.session import Session
from harness.study.steps import OnTrained, Progress
from harness.training.loop import Diverged, step_generator

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
    """A worker of the search (see `harness.jobs.pool`); a job that is no configuration prepares what all trials need."""
    runner = TrialRunner(context)

    def serve(job: Any, talk: Talk) -> TrialResult | None:
        runner.prepare(talk.progress)
        if not isinstance(job, dict):
            return None
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
        """Make what all trials need: the judge, and the data's own scores if they are asked for. One worker does, others wait.

        Raises `UserError` for limits that nothing can satisfy.
        """
        with waiting_for(self.context.folder / "judge.lock", lambda: progress("waiting for the judge", 0, 0)):
            self.context.session.ready_judge(lambda text: progress(text, 0, 0))
            if needs_data(self.context.cfg):
                data_values(self.context, progress)

    def run(self, tree: dict[str, Any], report: Report | None, progress: Progress) -> TrialResult:
        """Run one configuration to its end; `report` is asked at each validation whether to go on.

        Raises `Pruned`; `Diverged` where the loss stops being a number; `UserError` for values that do not go together and
        for an objective that has no value.
        """
        session = Session(tree, self.context.weights)
        session.adopt(self.context.session)
        session.adopt(self._latest)  # what the search varies may be the same in two trials that follow each other
        self._latest = session
        [cell] = make_cells(session)
        clock = [time.perf_counter()]
        trained = self._train(session, cell, report, progress)
        clock.append(time.perf_counter())
        steps.draw_cell(session, cell, progress)
        clock.append(time.perf_counter())
        protocol = steps.prepare_judge(session, progress)
        if needs_facts(self.context.cfg):
            steps.train_cell(session, cell, progress)  # the weights are there: what they cost is written down
            steps.measure_cell(session, cell, progress)
        steps.score_cell(session, cell, progress)
        clock.append(time.perf_counter())
        values, constraints, scores = evaluate(self.context, make_rows(session, cell, protocol))
        seconds = dict(zip(("train", "sample", "score"), np.diff(clock).tolist(), strict=True))
        return TrialResult(values, constraints, scores, seconds, trained)

    # ---- training -------------------------------------------------------------------------------------------------
    def _train(self, session: Session, cell: Cell, report: Report | None, progress: Progress) -> bool:
        weights = cell.weights
        if weights.failure.exists():
            raise Diverged(read_json(weights.failure)["reason"])
        told = None
        if report is not None and self.context.cfg.pruner.kind != "none":
            told = self._asking(session, cell, report)
        try:
            return steps.train_weights(session, weights, progress, told)
        except Diverged as error:
            write_json(weights.failure, {"reason": str(error)})
            raise
        except Pruned:
            # Its curves stay: trained again, it says the same.
            weights.checkpoint.unlink(missing_ok=True)
            raise

    def _asking(self, session: Session, cell: Cell, report: Report) -> OnTrained:
        """What is called at each validation: reports the bound or an early score, and ends a trial that is told to."""
        signal, steps = self.context.cfg.pruner.signal, session.cfg.scale.steps

        def validated(method: Method, at: int, values: dict[str, float]) -> None:
            # Where steps are matched in FLOPs trials train different numbers of them: what is compared are shares of the
            # budget, in the steps that the search is told of.
            step = round(at * steps / match.read_plan(cell.weights).steps)
            value = values[_BOUND] if signal == "bound" else self._early_score(session, method)
            if report(step, value) and step < steps:
                raise Pruned(f"at step {step} of {steps}, with {signal} {value:.4g}")

        return validated

    @torch.no_grad()
    def _early_score(self, session: Session, method: Method) -> float:
        """The objective's column of a few samples at its budget."""
        o: ObjectiveConfig = next(iter(self.context.cfg.objectives.values()))
        study = session.cfg.study
        count = min(self.context.cfg.pruner.samples, study.samples)
        metric = next(m for m in session.metrics if any(c.name == o.column for c in m.columns))
        judge = session.ready_judge(lambda _: None)
        generator = step_generator(session.numerics.device, study.sampling_seed, 7)
        sampler = session.sampler(method, *self.context.cfg.row)
        with session.numerics.autocast():
            x_NL = sampler.draw(count, o.nfe, generator, study.temperatures[0]).x_NL.cpu().numpy()
        reference = Samples(session.reference.x_NL[:count], session.reference.texts[:count])
        context = ScoreContext(session.data, reference, judge, session.cache, study.sampling_seed)
        samples = Samples(x_NL, [session.data.decode(row) for row in x_NL.tolist()])
        return float(metric.score(samples, context).values[o.column][0])
