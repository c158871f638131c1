"""A study of any number of cells whose files are made up, for what publishes them: nothing is trained, drawn or scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.config.load import load
from harness.store import append_jsonl, write_json, write_text
from harness.study.cells import Cell, data_cell, make_cells
from harness.study.drawing import samples_file
from harness.study.session import Session
from tests.kit.study_kit import command, write_corpus

PROTOCOL = "madeup"
MADE = {"commit": "0123456", "code": {}, "of": "", "device": "cpu", "dtype": "float32", "python": "3", "torch": "2"}


def made_up_session(folder: Path, count: int, *more: str) -> Session:
    """A study of `count` cells with two parts each."""
    seeds = f"study.seeds=[{','.join(map(str, range(count)))}]"
    arguments = command(write_corpus(folder / "words.txt"), folder / "runs", folder / "cache", *more)
    return Session(load([*arguments, seeds, "only=[mdlm]"]).tree)


def cells_of(session: Session) -> tuple[list[Cell], Cell]:
    """The cells of the study and that of its data, with the protocol's file written."""
    write_json(session.folder / "protocol.json", {"id": PROTOCOL, "judge": "nobody", "held_out_ppl": 20.0})
    return make_cells(session), data_cell(session)


def write_training(cell: Cell, points: int = 10) -> None:
    """Curves and a model."""
    cell.weights.curves.unlink(missing_ok=True)
    for step in range(points):
        values = {"valid/bound_nats_per_token": 3.0 - step / 10}
        append_jsonl(cell.weights.curves, {"step": step, "time_ms": 1000 + step, "values": values})
    write_text(cell.weights.model, "")


def write_scores(session: Session, cell: Cell) -> None:
    """Facts, and for each part scores of every column of the study's metrics, and samples."""
    write_json(cell.weights.cost, {"params": 1000, "train_tokens": 5000, "train_flops": 1e9, "made": MADE})
    write_json(cell.facts(session), {"nelbo_nats_per_token": 2.5, "nelbo_se": 0.1, "made": MADE})
    for part in cell.parts:
        rng = np.random.default_rng([cell.seed, part.nfe])
        values = {f"{c.name}{end}": float(rng.uniform(1, 2)) for c in session.columns for end in ("", "_se")}
        cost = {"nfe_latent": 0, "nfe_token": part.nfe, "flops_per_seq": 1e6 * part.nfe, "seconds_per_seq": 0.1}
        cost["made"] = MADE
        record = {"time_ms": 5000 + cell.seed, "protocol": PROTOCOL, "values": values, "cost": cost}
        record["made"] = MADE
        sequences = {"a": rng.uniform(size=100).tolist()}  # as long as those of a real score
        write_json(cell.scores(session, part, PROTOCOL), record | {"per_sequence": sequences})
        lines = [json.dumps({"text": f"sample {i}", "ids": [1, 2, 3]}) for i in range(10)]
        write_text(samples_file(session, cell, part), "\n".join(lines) + "\n")
