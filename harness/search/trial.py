"""One trial of a search: train (unless its weights are there), sample, score, and read what it is judged by from its rows.

Every step leaves files in the trial's own folder, named by its values, and in the study's folder of weights: a trial that is
run again finds what was finished. A worker asks the command whether to go on, and knows nothing of storages and databases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.errors import JobError, UserError
from harness.interface import Method
from harness.jobs.locks import waiting_for
from harness.jobs.pool import Serve, Talk
from harness.metrics.base import Column, Samples, ScoreContext
from harness.provenance import short_hash
from harness.search.loaded import Context, code_of_trials
from harness.search.schema import ConstraintConfig, JudgedConfig, ObjectiveConfig, TuneConfig
from harness.store import read_json, write_json
from harness.study import match, steps
from harness.study.cells import Cell, data_cell, make_cells
from harness.study.made import made_by
from harness.study.rows import make_rows
from harness.study.session import Session
from harness.study.steps import OnTrained, Progress
from harness.training.loop import Diverged
from harness.training.seeds import step_generator

#: Told a training step and the value there; answers whether the trial should be ended.
Report = Callable[[int, float], bool]
_BOUND = "valid/bound_nats_per_token"
#: Columns that are measured while sampling, and those that are measured on the trained model; lower is better.
COSTS = ("seconds_per_seq", "flops_per_seq", "equivalent_nfe")
FACTS = ("nelbo_nats_per_token", "bits_per_token", "params", "train_flops")
#: Distances from the data's own law, where that is known.
TRUTH = ("bound_excess_nats", "reverse_nats", "path_nats")


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
    if short_hash(code_of_trials(context.tree, context.cfg.row), 12) != context.code:
        raise UserError("the code of its trials was edited while the search went on; give the same command again")
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
        # What the search varies may be the same in two trials that follow each other.
        session = self.context.session_of(tree, self._latest)
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
        values, constraints, scores = evaluate(self.context, make_rows(session, cell, protocol), session.columns)
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
            write_json(weights.failure, {"reason": str(error), "made": made_by(session, "train", weights)})
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


# ---- what it is judged by ---------------------------------------------------------------------------------------------
def known_columns(columns: Sequence[Column]) -> dict[str, str]:
    """Direction by name of all columns that can be asked for: the metrics' own, costs and facts."""
    aims = {"lower": "minimize", "higher": "maximize", "data": "data"}
    return {c.name: aims[c.better] for c in columns} | dict.fromkeys((*COSTS, *FACTS, *TRUTH), "minimize")


def needs_facts(cfg: TuneConfig) -> bool:
    """Whether something is asked for that is measured on the model, which takes longer than a small set of samples."""
    return any(e.column in (*FACTS, *TRUTH) for e in cfg.judged)


def needs_data(cfg: TuneConfig) -> bool:
    """Whether the data's own values are asked for."""
    aims = any(o.direction == "data" for o in cfg.objectives.values())
    return aims or any(c.within is not None for c in cfg.constraints.values())


def evaluate(
    context: Context, rows: Sequence[dict[str, Any]], columns: Sequence[Column] = ()
) -> tuple[list[float], list[float], dict[str, float]]:
    """(objectives, constraints, scores) of the searched method's rows; `columns` of the metrics: those that scores are of.

    A constraint is at most 0 where it is met: what it is broken by, in the unit of its column. Scores are all numbers of
    the rows as `<column>@<nfe>`. Raises `UserError` for an objective without a value, which a trial cannot be told with.
    """
    cfg = context.cfg
    own = [row for row in rows if (row["method"], row["sampler"]) == cfg.row]
    data = data_values(context) if needs_data(cfg) else {}
    values = [_objective(name, o, own, data) for name, o in cfg.objectives.items()]
    constraints = [
        _excess(c, _number(_row(own, c).get(c.column)), data.get(c.column, math.nan)) for c in cfg.constraints.values()
    ]
    known = known_columns(columns or context.session.columns)
    numbers = [(row["nfe"], k, _number(v)) for row in own for k, v in row.items() if k.removesuffix("_se") in known]
    return values, constraints, {f"{name}@{nfe}": value for nfe, name, value in numbers if not math.isnan(value)}


def _objective(name: str, o: ObjectiveConfig, rows: list[dict[str, Any]], data: dict[str, float]) -> float:
    row = _row(rows, o)
    value = _number(row.get(o.column))
    if not math.isfinite(value):
        alike = (key for key in row if key.startswith(o.column[:3]) and not key.endswith("_se"))
        kin = [key for key in alike if math.isfinite(_number(row[key]))]
        hint = f"; tune.objectives.{name}.column={kin[0]} has a value" if kin else ""
        raise UserError(f"{o.column} at NFE {o.nfe} is {value}, with which no trial can be compared{hint}")
    return abs(value - data[o.column]) if o.direction == "data" else value


def _excess(c: ConstraintConfig, value: float, of_data: float) -> float:
    """By how much the value lies outside of its limits; at most 0 inside."""
    low, high = limits(c, of_data)
    if math.isnan(value):
        return math.inf
    return max(low - value if low > -math.inf else -math.inf, value - high if high < math.inf else -math.inf)


def limits(c: ConstraintConfig, of_data: float) -> tuple[float, float]:
    """The interval that the constraint allows, given the data's own value (not a number: not known)."""
    low = -math.inf if c.min is None else c.min
    high = math.inf if c.max is None else c.max
    if c.within is not None and not math.isnan(of_data):
        margin = c.within * abs(of_data)
        low, high = max(low, of_data - margin), min(high, of_data + margin)
    return low, high


def _row(rows: list[dict[str, Any]], e: JudgedConfig) -> dict[str, Any]:
    for row in rows:
        if row["nfe"] == e.nfe:
            return row
    raise UserError(f"there is no row at NFE {e.nfe} to read {e.column} from")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


# ---- the data's own values --------------------------------------------------------------------------------------------
def data_values(context: Context, progress: Progress = lambda text, done, total: None) -> dict[str, float]:
    """Scores of held-out data in the place of samples, by column; made once and kept in the search's folder.

    Raises `UserError` for limits that leave no value, given the data's own.
    """
    if not context.of_data:
        path = context.folder / f"data-{context.identity}-{context.code}.json"
        if not path.exists():
            write_json(path, _score_data(context.session, progress))
        values = read_json(path)
        for name, c in context.cfg.constraints.items():
            low, high = limits(c, values.get(c.column, math.nan))
            if low > high:
                near = f"within {c.within:g} of the data's {c.column}, {values[c.column]:.4g}"
                raise UserError(f"tune.constraints.{name}: nothing is {near}, and also within its min and max")
        context.of_data.update(values)
    return context.of_data


def _score_data(session: Session, progress: Progress) -> dict[str, float]:
    cell = data_cell(session)
    steps.score_cell(session, cell, progress)
    protocol = steps.prepare_judge(session, progress)
    return read_json(cell.scores(session, cell.parts[0], protocol))["values"]
