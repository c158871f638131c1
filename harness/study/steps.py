"""The steps of a study, as functions of a session and a cell: judge, train, sample, score. Workers call them.

Each returns at once where its file exists, so that a command that was killed goes on where it was.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.interface import Method, Sampler
from harness.jobs.locks import waiting_for
from harness.nn.slices import at_most
from harness.provenance import short_hash
from harness.store import read_json, write_json, write_text
from harness.study import drawing, match, ranks, reading
from harness.study.bound import measure_bound
from harness.study.budget import stage_flops
from harness.study.cells import DATA_ROW, Cell, Weights
from harness.study.drawing import as_jsonl, load_method, load_sampler, samples_file
from harness.study.fit import fit
from harness.study.made import made_by
from harness.study.session import Session
from harness.training import batches, checkpoint, loop
from harness.training.distributed import Group

Progress = Callable[[str, int, int], None]
OnTrained = Callable[[Method, int, dict[str, float]], None]


def prepare_judge(session: Session, progress: Progress) -> str:
    """Load or train the judge; returns the protocol's short identity."""
    session.ready_judge(lambda text: progress(text, 0, 0))
    return write_protocol(session)


def write_protocol(session: Session) -> str:
    """Write down what scores depend on; returns its short identity. The judge must be prepared."""
    path = session.folder / "protocol.json"
    protocol = short_hash(session.protocol, 12)
    known = {"id": protocol, "held_out_ppl": session.judge.heldout_ppl} | session.protocol
    if not path.exists() or read_json(path) != known:
        write_json(path, known)
    return protocol


def train_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Train the model that the cell draws from, where its weights are not there yet, and write down what it cost.

    Raises `Diverged` where the loss stops being a number.
    """
    train_weights(session, cell.weights, progress)
    if not cell.weights.cost.exists():
        write_json(cell.weights.cost, _cost(session, cell.weights, load_method(session, cell.weights)))


def train_weights(
    session: Session, weights: Weights, progress: Progress, on_validation: OnTrained | None = None
) -> bool:
    """Train a model where its weights are not there yet; whether anything was trained here.

    Of several processes that ask for the same weights one trains, and the others wait. `on_validation` is told the method
    with its averaged weights, the step and the values of each validation; what it raises ends training. Raises `Diverged`.
    """
    if not weights.trained or weights.model.exists():
        return False
    waiting = f"waiting for another process that trains {weights.folder.name}"
    with waiting_for(weights.folder / ".lock", lambda: progress(waiting, 0, 0)):
        if weights.model.exists():
            return False
        method = session.build(weights.method, weights.seed)
        told = on_validation and functools.partial(on_validation, method)
        if session.cfg.compute.processes > 1:
            ranks.train_in_ranks(session, weights, method, progress, told)
        else:
            fit(session, weights, method, progress, None, told)
    return True


def _cost(session: Session, weights: Weights, method: Method) -> dict[str, Any]:
    """Parameters, tokens and FLOPs of training: its fit, and one step of each stage counted, times its number of steps."""
    scale = session.cfg.scale
    params = sum(p.numel() for p in method.parameters()) + method.fitted_numbers()
    train_NL = session.data.splits["train"]
    if not method.stages():
        known = {
            "params": params,
            "train_tokens": int(train_NL.size) if match.fits(method) else None,
            "train_flops": None,
            "train_seconds": None,
            "printed": {name: dict(by_nfe) for name, by_nfe in method.printed.items()},
            "printed_in": method.printed_in,
        }
        return known | {"made": made_by(session, "train", weights)}
    _, meta = checkpoint.load_tensors(weights.model)
    plan = match.read_plan(weights)
    counted = plan.stage_flops or stage_flops(method, session.cfg.train, match.first_part(session), [(weights.seed, 4)])
    steps = [count for _, count in loop.stage_steps(method, plan.steps)]
    # A fit may have read more sequences than the steps that its cost has left.
    fitted = len(batches.budget_rows(len(train_NL), scale, weights.seed)) if match.fits(method) else 0
    return {
        "params": params,
        "train_tokens": max(plan.steps * scale.batch, fitted) * scale.length,
        "train_flops": plan.fit_flops + sum(n * flops for n, flops in zip(steps, counted, strict=True)),
        "train_seconds": meta.get("train_seconds"),
        "made": plan.made,
    }


def sample_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Draw every part that is not there yet, then measure the bound."""
    sampler = draw_cell(session, cell, progress)
    # A compiled network rounds otherwise: the bound is that of the plain one.
    measure_cell(session, cell, progress, None if session.numerics.compile_sampling else sampler)


def draw_cell(session: Session, cell: Cell, progress: Progress) -> Sampler | None:
    """Draw every part that is not there yet; returns what has drawn, if this process did.

    Where `compute.processes` train a model, as many draw from it, none without a chunk of its own.
    """
    s, c = session.cfg.study, session.cfg.compute
    several = min(c.processes, math.ceil(s.samples / c.sample_batch)) if cell.weights.trained else 1
    if several > 1 and drawing.undrawn(session, cell):
        ranks.draw_in_ranks(session, cell, several, progress)
    return drawing.draw_parts(session, cell, progress, Group())


def measure_cell(session: Session, cell: Cell, progress: Progress, sampler: Sampler | None = None) -> None:
    """Measure the bound of what the cell draws from, and its distance from the data's law where that is known."""
    facts = cell.facts(session)
    if not facts.exists():
        progress("bound", 0, 0)
        made = made_by(session, "sample", cell, checkpoint.hash_in(cell.weights.model))
        write_json(facts, measure_bound(session, cell, sampler or load_sampler(session, cell)) | {"made": made})


def score_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Score every part that has no scores under this protocol yet."""
    protocol = prepare_judge(session, progress)
    c, s = session.cfg.compute, session.cfg.study
    # None without a batch of its own: a process takes seconds to start.
    several = min(c.processes, s.samples * session.cfg.scale.length // c.eval_tokens)
    if several > 1 and reading.unread(session, cell, protocol):
        ranks.read_in_ranks(session, cell, protocol, several, progress)
    for i, part in enumerate(cell.parts):
        path = cell.scores(session, part, protocol)
        if cell.method == DATA_ROW and not samples_file(session, cell, part).exists():
            write_text(samples_file(session, cell, part), as_jsonl(session, session.held_out.x_NL))
        if path.exists():
            continue
        progress("score", i, len(cell.parts))
        samples, meta = session.held_out, dict[str, Any]()
        if cell.method != DATA_ROW:
            samples, meta = reading.samples_of(session, cell, part)
            reading.take_over(session, cell, part, protocol, samples.texts)
        values: dict[str, float] = {}
        sequences, profiles = dict[str, list[float]](), dict[str, list[float]]()
        for metric in session.metrics:
            with at_most(session.cfg.compute.eval_tokens):
                scores = metric.score(samples, session.score_context)
            for name, (value, error) in scores.values.items():
                values[name], values[f"{name}_se"] = value, error
            sequences |= {k: np.asarray(v).tolist() for k, v in scores.per_sequence.items()}
            profiles |= {k: np.asarray(v).tolist() for k, v in scores.profiles.items()}
        made = made_by(session, "score", cell, checkpoint.hash_in(cell.samples(session, part)))
        record = {
            "time_ms": int(time.time() * 1000),
            "protocol": protocol,
            "values": values,
            "profiles": profiles,
            "cost": meta,
            "made": made,
        }
        write_json(path, record | {"per_sequence": sequences})
    progress("score", len(cell.parts), len(cell.parts))


def is_done(session: Session, kind: str, cell: Cell, protocol: str | None) -> bool:
    """Whether all files of a step are there; without a protocol (no judge was ready yet) nothing is scored."""
    files = {
        "train": [cell.weights.cost, *([cell.weights.model] if cell.weights.trained else [])],
        "sample": [
            cell.facts(session),
            *(file for p in cell.parts for file in (cell.samples(session, p), samples_file(session, cell, p))),
        ],
        "score": [cell.scores(session, p, protocol) for p in cell.parts] if protocol else [],
    }[kind]
    if files and cell.method == DATA_ROW:  # nothing is sampled: what is scored is written as text by the same step
        files += [samples_file(session, cell, p) for p in cell.parts]
    return bool(files) and all(file.exists() for file in files)
