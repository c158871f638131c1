"""Drawing a cell's samples from its trained model, by this process or as one of several, and the files that they are kept in.

Shapes: N sequences, L tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from harness.errors import UserError
from harness.interface import Method, Sampler
from harness.store import write_text
from harness.study.cells import Cell, Part, Weights
from harness.study.made import made_by
from harness.study.sampling import draw_samples, warm_up
from harness.study.session import Session
from harness.training import checkpoint
from harness.training.compiled import say_uncompiled
from harness.training.distributed import Group

_CHOSEN_ON = 1000  # validation sequences: seconds, and more than tell two orders apart

Progress = Callable[[str, int, int], None]


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


def undrawn(session: Session, cell: Cell) -> list[Part]:
    """The parts of which there are no samples yet."""
    return [part for part in cell.parts if not cell.samples(session, part).exists()]


def draw_parts(session: Session, cell: Cell, progress: Progress, group: Group) -> Sampler | None:
    """Draw every part that is not there yet; ids are kept, and text goes to `samples/*.jsonl`. Returns what has drawn.

    Of a group all draw, and the first one writes.
    """
    todo = undrawn(session, cell)
    for part in cell.parts if group.leads else ():
        # Put aside with the results of another configuration, while the ids stayed with the cell.
        if part not in todo and not samples_file(session, cell, part).exists():
            tensors, _ = checkpoint.load_tensors(cell.samples(session, part))
            write_text(samples_file(session, cell, part), as_jsonl(session, tensors["x_NL"].numpy()))
    group.wait()  # all have looked before the first writes
    return _draw(session, cell, todo, progress, group) if todo else None


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
        write_text(samples_file(session, cell, part), as_jsonl(session, drawn.x_NL))
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


def as_jsonl(session: Session, x_NL: np.ndarray) -> str:
    """A line with text and ids for each sequence."""
    rows = x_NL.tolist()
    return "".join(json.dumps({"text": session.data.decode(r), "ids": r}, ensure_ascii=False) + "\n" for r in rows)
