"""The steps of a study, as functions of a session and a cell: judge, train, sample, score. Workers call them.

Each returns at once where its file exists, so that a command that was killed goes on where it was.
"""

from __future__ import annotations

import functools
import json
import math
import sys
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
from harness.provenance import short_hash
from harness.store import read_json, write_json, write_text
from harness.study import match, ranks
from harness.study.budget import stage_flops
from harness.study.cells import DATA_ROW, Cell, Part, Weights
from harness.study.exact import against_truth
from harness.study.fit import fit
from harness.study.sampling import draw_samples, warm_up
from harness.study.session import Session
from harness.training import checkpoint, loop

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
    """A trained method in evaluation mode; counted methods are counted again (seconds)."""
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
    return method.eval().to(session.numerics.device)


def load_sampler(session: Session, cell: Cell) -> Sampler:
    """The cell's sampler on its trained method."""
    return session.sampler(load_method(session, cell.weights), cell.method, cell.sampler)


def _cost(session: Session, weights: Weights, method: Method) -> dict[str, float | int | None]:
    """Parameters, tokens and FLOPs of training: its fit, and one step of each stage counted, times its number of steps."""
    scale = session.cfg.scale
    params = sum(p.numel() for p in method.parameters()) + method.fitted_numbers()
    train_NL = session.data.splits["train"]
    if not method.stages():
        return {"params": params, "train_tokens": int(train_NL.size), "train_flops": None, "train_seconds": None}
    _, meta = checkpoint.load_tensors(weights.model)
    plan = match.read_plan(weights)
    counted = plan.stage_flops or stage_flops(
        method, session.cfg.train, match.first_batch(session), [(weights.seed, 4)]
    )
    steps = [count for _, count in loop.stage_steps(method, plan.steps)]
    # A fit may have read more sequences than the steps that its cost has left.
    fitted = len(loop.budget_rows(len(train_NL), scale, weights.seed)) if match.fits(method) else 0
    return {
        "params": params,
        "train_tokens": max(plan.steps * scale.batch, fitted) * scale.length,
        "train_flops": plan.fit_flops + sum(n * flops for n, flops in zip(steps, counted, strict=True)),
        "train_seconds": meta.get("train_seconds"),
    }


@torch.no_grad()
def _bound(session: Session, cell: Cell, sampler: Sampler) -> dict[str, Any]:
    """Mean bound over test sequences, averaged over Monte Carlo draws first; standard error over sequences.

    Where the data's law is known, also how far from it the model is.
    """
    s, numerics = session.cfg.study, session.numerics
    test_NL = session.data.splits["test"][: s.bound_sequences]
    total_N, estimator, exact = np.zeros(len(test_NL)), None, False
    parts: dict[str, float] = {}
    for draw in range(s.bound_draws):
        for start in range(0, len(test_NL), 256):
            x_BL = torch.from_numpy(np.asarray(test_NL[start : start + 256], dtype=np.int64)).to(numerics.device)
            generator = loop.step_generator(numerics.device, cell.seed, 5, draw, start)
            with numerics.autocast():
                bound = sampler.bound(x_BL, generator)
            if bound is None:
                none = {"nelbo_nats_per_token": None, "nelbo_se": None, "bound_estimator": None}
                return none | against_truth(session, cell, sampler, test_NL, None, exact=False)
            estimator, exact = bound.estimator, bound.exact
            total_N[start : start + 256] += bound.total_B.double().cpu().numpy() / s.bound_draws
            for name, value in bound.parts_B.items():
                parts[name] = parts.get(name, 0.0) + float(value.double().sum()) / total_N.size / s.bound_draws
        if exact:
            total_N *= s.bound_draws
            break
    tokens = session.data.length
    return {
        "nelbo_nats_per_token": float(total_N.mean()) / tokens,
        "nelbo_se": float(total_N.std(ddof=1)) / math.sqrt(len(total_N)) / tokens if len(total_N) > 1 else None,
        "bound_exact": exact,
        "bound_estimator": f"{estimator}; {1 if exact else s.bound_draws} draw(s), {len(total_N)} test sequences",
        **{f"bound_{k}_nats": v for k, v in parts.items()},
        **against_truth(session, cell, sampler, test_NL, total_N, exact),
    }


def sample_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Draw every part that is not there yet, then measure the bound."""
    draw_cell(session, cell, progress)
    measure_cell(session, cell, progress)


def draw_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Draw every part that is not there yet; ids are kept, and text goes to `samples/*.jsonl`."""
    todo = [part for part in cell.parts if not cell.samples(session, part).exists()]
    for part in cell.parts:
        # Put aside with the results of another configuration, while the ids stayed with the cell.
        if part not in todo and not samples_file(session, cell, part).exists():
            tensors, _ = checkpoint.load_tensors(cell.samples(session, part))
            write_text(samples_file(session, cell, part), _as_jsonl(session, tensors["x_NL"].numpy()))
    if todo:
        _draw(session, cell, todo, progress)


def measure_cell(session: Session, cell: Cell, progress: Progress) -> None:
    """Measure the bound of what the cell draws from, and its distance from the data's law where that is known."""
    facts = cell.facts(session)
    if not facts.exists():
        progress("bound", 0, 0)
        write_json(facts, _bound(session, cell, load_sampler(session, cell)))


def _draw(session: Session, cell: Cell, todo: list[Part], progress: Progress) -> None:
    s, c = session.cfg.study, session.cfg.compute
    sampler = _ready_sampler(session, cell, min(todo, key=lambda part: part.nfe))
    for part in todo:
        drawn = draw_samples(
            sampler, part, s.samples, c.sample_batch, (s.sampling_seed, cell.seed), session.numerics,
            functools.partial(progress, f"sample NFE {part.nfe}"),
        )  # fmt: skip
        meta = {
            "nfe_latent": drawn.nfe_latent,
            "nfe_token": drawn.nfe_token,
            "draw_dtype": drawn.draw_dtype,
            "seconds_per_seq": drawn.seconds_per_seq,
            "flops_per_seq": drawn.flops_per_seq,
        }
        write_text(samples_file(session, cell, part), _as_jsonl(session, drawn.x_NL))
        checkpoint.save_tensors(cell.samples(session, part), {"x_NL": torch.from_numpy(drawn.x_NL)}, meta)


def _ready_sampler(session: Session, cell: Cell, part: Part) -> Sampler:
    """The cell's sampler, compiled where that is wanted and the toolchain can."""
    sampler = load_sampler(session, cell)
    if session.numerics.compile_sampling and cell.role == "method":
        chunk = min(session.cfg.compute.sample_batch, session.cfg.study.samples)
        try:
            warm_up(sampler, part, chunk, session.numerics, session.cache)
        except Exception as error:  # a toolchain can fail in many ways, and none of them should cost the study
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"\n{cell.name}: torch.compile failed ({reason}); sampling runs uncompiled", file=sys.stderr, flush=True
            )
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
        sequences: dict[str, list[float]] = {}
        for metric in session.metrics:
            scores = metric.score(samples, session.score_context)
            for name, (value, error) in scores.values.items():
                values[name], values[f"{name}_se"] = value, error
            sequences |= {k: np.asarray(v).tolist() for k, v in scores.per_sequence.items()}
        record = {"time_ms": int(time.time() * 1000), "protocol": protocol, "values": values, "cost": meta}
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
