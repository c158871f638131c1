"""The steps of a study, as functions of a session and a cell: judge, train, sample, score. Workers call them.

Each returns at once where its file exists, so that a command that was killed goes on where it was.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.errors import UserError
from harness.interface import Method, Sampler
from harness.jobs.locks import waiting_for
from harness.metrics.base import Samples
from harness.nn.slices import at_most
from harness.provenance import short_hash
from harness.store import read_json, write_json, write_text
from harness.study import match, ranks
from harness.study.bound import measure_bound
from harness.study.budget import stage_flops
from harness.study.cells import DATA_ROW, Cell, Part, Weights
from harness.study.fit import fit
from harness.study.made import made_by
from harness.study.sampling import draw_samples, warm_up
from harness.study.session import Session
from harness.training import batches, checkpoint, loop
from harness.training.compiled import say_uncompiled
from harness.training.distributed import Group

_CHOSEN_ON = 1000  # validation sequences: seconds, and more than tell two orders apart

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


def load_method(session: Session, weights: Weights) -> Method:
    """A trained method in evaluation mode; a counted one is counted once in a session, whatever the seed."""
    if weights.method in session.counted:
        return session.counted[weights.method]
    method = session.build(weights.method, weights.seed)
    if method.stages():
        tensors, meta = checkpoint.load_tensors(weights.model)
        checkpoint.load_model(method, tensors, weights.model)
        if meta.get("key") != weights.key:  # names and shapes may agree all the same
            raise UserError(
                f"checkpoint {weights.model} is of another model ({meta.get('method')}, {meta.get('key')}); delete this "
                "file and run the same command again to rebuild it"
            )
        for stage in method.stages():
            method.set_stage(stage.name)
    else:
        method.fit(session.data.splits["train"])
        session.counted[weights.method] = method
    method.settle(session.data.some("valid", _CHOSEN_ON))
    return method.eval().to(session.numerics.device)


def load_sampler(session: Session, cell: Cell) -> Sampler:
    """The cell's sampler on its trained method."""
    return session.sampler(load_method(session, cell.weights), cell.method, cell.sampler)


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


def draw_cell(session: Session, cell: Cell, progress: Progress, group: Group | None = None) -> Sampler | None:
    """Draw every part that is not there yet; ids are kept, and text goes to `samples/*.jsonl`. Returns what has drawn.

    Where `compute.processes` train a model, as many draw from it (or as many as there are chunks), each as one of `group`.
    """
    todo = [part for part in cell.parts if not cell.samples(session, part).exists()]
    for part in cell.parts:
        # Put aside with the results of another configuration, while the ids stayed with the cell.
        if part not in todo and not samples_file(session, cell, part).exists():
            tensors, _ = checkpoint.load_tensors(cell.samples(session, part))
            write_text(samples_file(session, cell, part), _as_jsonl(session, tensors["x_NL"].numpy()))
    if todo and group is None and (several := _processes(session, cell)) > 1:
        ranks.draw_in_ranks(session, cell, several, progress)
        return None
    group = group or Group()
    group.wait()  # all have looked before the first writes
    return _draw(session, cell, todo, progress, group) if todo else None


def _processes(session: Session, cell: Cell) -> int:
    """How many processes draw the cell's samples: none without a chunk of its own, and one of what nothing trains."""
    s, c = session.cfg.study, session.cfg.compute
    return min(c.processes, math.ceil(s.samples / c.sample_batch)) if cell.weights.trained else 1


def measure_cell(session: Session, cell: Cell, progress: Progress, sampler: Sampler | None = None) -> None:
    """Measure the bound of what the cell draws from, and its distance from the data's law where that is known."""
    facts = cell.facts(session)
    if not facts.exists():
        progress("bound", 0, 0)
        made = made_by(session, "sample", cell, checkpoint.hash_in(cell.weights.model))
        write_json(facts, measure_bound(session, cell, sampler or load_sampler(session, cell)) | {"made": made})


def _draw(session: Session, cell: Cell, todo: list[Part], progress: Progress, group: Group) -> Sampler:
    s, c = session.cfg.study, session.cfg.compute
    sampler = _ready_sampler(session, cell, min(todo, key=lambda part: part.nfe))
    made = made_by(session, "sample", cell, checkpoint.hash_in(cell.weights.model))
    for part in todo:
        drawn = draw_samples(
            sampler, part, s.samples, c.sample_batch, (s.sampling_seed, cell.seed), session.numerics,
            functools.partial(progress, f"sample NFE {part.nfe}"), session.prompts, group,
        )  # fmt: skip
        if not group.leads:
            continue
        meta = {
            "nfe_latent": drawn.nfe_latent,
            "nfe_token": drawn.nfe_token,
            "draw_dtype": drawn.draw_dtype,
            "seconds_per_seq": drawn.seconds_per_seq,
            "flops_per_seq": drawn.flops_per_seq,
            "calls": drawn.calls,
            "made": made,
        }
        write_text(samples_file(session, cell, part), _as_jsonl(session, drawn.x_NL))
        checkpoint.save_tensors(cell.samples(session, part), {"x_NL": torch.from_numpy(drawn.x_NL)}, meta)
    return sampler


def _ready_sampler(session: Session, cell: Cell, part: Part) -> Sampler:
    """The cell's sampler, compiled where that is wanted and the toolchain can."""
    sampler = load_sampler(session, cell)
    if session.numerics.compile_sampling and cell.role == "method" and not sampler.adaptive:
        chunk = min(session.cfg.compute.sample_batch, session.cfg.study.samples)
        try:
            warm_up(sampler, part, chunk, session.numerics, session.cache)
        except Exception as error:  # a toolchain can fail in many ways, and none of them should cost the study
            say_uncompiled(cell.name, "sampling", error)
            sampler = load_sampler(session, cell)
    return sampler


def samples_file(session: Session, cell: Cell, part: Part) -> Path:
    """`samples/<method>-<sampler>-seed<k>-nfe<K>-T<t>.jsonl` in the study's folder."""
    return session.folder / "samples" / f"{cell.name.replace('/', '-')}-{part.label}.jsonl"


def _as_jsonl(session: Session, x_NL: np.ndarray) -> str:
    rows = x_NL.tolist()
    return "".join(json.dumps({"text": session.data.decode(r), "ids": r}, ensure_ascii=False) + "\n" for r in rows)


def score_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Score every part that has no scores under this protocol yet."""
    protocol = prepare_judge(session, progress)
    for i, part in enumerate(cell.parts):
        path = cell.scores(session, part, protocol)
        if cell.method == DATA_ROW and not samples_file(session, cell, part).exists():
            write_text(samples_file(session, cell, part), _as_jsonl(session, session.held_out.x_NL))
        if path.exists():
            continue
        progress("score", i, len(cell.parts))
        samples, meta = session.held_out, dict[str, Any]()
        if cell.method != DATA_ROW:
            tensors, meta = checkpoint.load_tensors(cell.samples(session, part))
            x_NL = tensors["x_NL"].numpy()
            samples = Samples(x_NL, [session.data.decode(row) for row in x_NL.tolist()])
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
