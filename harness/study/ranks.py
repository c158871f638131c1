"""One cell's model trained, its samples drawn, or read by the judge, by several processes: how a worker starts them, and what
each does.

`torchrun --nproc-per-node=2 -m harness.study.ranks study=few_step compute.processes=2 train.accumulate=2 ...` trains all
models of a study in torchrun's processes, on as many machines as it is told; the same arguments to `harness.run` then find
them trained.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.config.load import load
from harness.errors import EXIT_CODE, UserError
from harness.interface import Method
from harness.jobs.launch import attend, launch, say
from harness.progress import counted
from harness.store import read_json, write_json
from harness.study.cells import Cell, Part, Weights, make_cells
from harness.study.drawing import draw_parts
from harness.study.fit import fit
from harness.study.reading import read_parts
from harness.study.session import Session
from harness.training import checkpoint, distributed
from harness.training.loop import Diverged
from harness.training.shards import gathered


def train_in_ranks(
    session: Session,
    weights: Weights,
    method: Method,
    progress: Callable[[str, int, int], None],
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Train the model in `compute.processes` processes of this machine, which write its files.

    At each validation the averaged weights are put into `method` and `on_validation` is called here, while training goes
    on; what it raises ends them all. Raises `Diverged` and `UserError` as training in this process would, and `RanksEnded`
    where one of them ended twice.
    """

    def validated(step: int, values: dict[str, float]) -> None:
        tensors, _ = checkpoint.load_tensors(_validation_at(weights, step))
        _validation_at(weights, step).unlink()
        checkpoint.load_model(method, tensors, _validation_at(weights, step))
        assert on_validation is not None
        on_validation(step, values)

    spec = {"weights": dataclasses.asdict(weights), "validations": on_validation is not None}
    _launch(session, spec, weights.folder, session.cfg.compute.processes, progress, validated)


def draw_in_ranks(session: Session, cell: Cell, processes: int, progress: Callable[[str, int, int], None]) -> None:
    """Draw the parts of the cell that are not there yet in `processes` processes, which write its files.

    Raises `UserError` as drawing in this process would, and `RanksEnded` where one of them ended twice.
    """
    _launch(session, {"cell": dataclasses.asdict(cell)}, cell.folder, processes, progress)


def read_in_ranks(
    session: Session, cell: Cell, protocol: str, processes: int, progress: Callable[[str, int, int], None]
) -> None:
    """Have the judge read the parts of the cell that it has not in `processes` processes; see `harness.study.reading`."""
    _launch(session, {"cell": dataclasses.asdict(cell), "protocol": protocol}, cell.folder, processes, progress)


def _launch(
    session: Session, spec: dict[str, Any], folder: Path, processes: int, progress: Callable[[str, int, int], None],
    validated: Callable[[int, dict[str, float]], None] | None = None,
) -> None:  # fmt: skip
    """Run this module in `processes` ranks that read `spec`, and pass on what they say."""
    path = folder / "ranks.json"
    write_json(path, spec | {"tree": session.tree})

    def report(message: dict[str, Any]) -> None:
        if "progress" in message:
            progress(*message["progress"])
        elif "validation" in message and validated is not None:
            validated(*message["validation"])
        elif "diverged" in message:
            raise Diverged(message["diverged"])
        else:
            raise UserError(message["refused"])

    launch("harness.study.ranks", str(path), processes, report, folder / "ranks.log", session.cfg.compute.threads)
    path.unlink(missing_ok=True)


def _validation_at(weights: Weights, step: int) -> Path:
    return weights.folder / f"validation-{step}.safetensors"


# ---- a process of the group -------------------------------------------------------------------------------------------
def main(arguments: list[str] | None = None) -> int:
    """A rank of a worker's (one argument, its file), or of torchrun (the overrides of a study)."""
    attend()
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        try:
            _one_cell(read_json(Path(arguments[0])))
        except Diverged as error:  # in every process at once
            say({"diverged": str(error)})
        except UserError as error:
            say({"refused": str(error)})
        return 0
    try:
        _all_cells(arguments)
    except (Diverged, UserError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_CODE if isinstance(error, UserError) else 1
    return 0


def _one_cell(spec: dict[str, Any]) -> None:
    session = Session(spec["tree"])
    group = _join(session)

    def progress(text: str, done: int, total: int) -> None:
        if group.leads:
            say({"progress": [text, done, total]})

    if "protocol" in spec:
        session.ready_judge(lambda text: progress(text, 0, 0))
        read_parts(session, _cell(spec["cell"]), spec["protocol"], progress, group)
    elif "cell" in spec:
        draw_parts(session, _cell(spec["cell"]), progress, group)
    else:
        _train(session, _weights(spec["weights"]), group, progress, spec["validations"])
    distributed.leave()


def _weights(spec: dict[str, Any]) -> Weights:
    return Weights(**spec | {"folder": Path(spec["folder"])})


def _cell(spec: dict[str, Any]) -> Cell:
    parts = tuple(Part(**part) for part in spec["parts"])
    return Cell(**spec | {"folder": Path(spec["folder"]), "parts": parts, "weights": _weights(spec["weights"])})


def _train(
    session: Session, weights: Weights, group: distributed.Group, progress: Callable[[str, int, int], None], told: bool
) -> None:
    method = session.build(weights.method, weights.seed)

    def validated(step: int, values: dict[str, float]) -> None:
        tensors = gathered(method.state_dict(), group.leads)
        if group.leads:
            checkpoint.save_tensors(_validation_at(weights, step), tensors, {"step": step})
            say({"validation": [step, values]})

    fit(session, weights, method, progress, group, validated if told else None)


def _all_cells(arguments: list[str]) -> None:
    session = Session(load(arguments).tree)
    group = _join(session)
    if group.size != session.cfg.compute.processes:
        raise UserError(
            f"compute.processes={session.cfg.compute.processes}: torchrun started {group.size}; "
            f"use compute.processes={group.size}"
        )

    def progress(text: str, done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"{weights.name}: {counted(text, done, total)}", file=sys.stderr, flush=True)

    for weights in dict.fromkeys(cell.weights for cell in make_cells(session)):
        # All decide on what they see before any of them trains.
        todo = weights.trained and not weights.model.exists()
        group.wait()
        if todo:
            fit(session, weights, session.build(weights.method, weights.seed), progress, group)
        group.wait()
    distributed.leave()


def _join(session: Session) -> distributed.Group:
    torch.set_num_threads(session.cfg.compute.threads)
    return distributed.join(session.numerics.device, session.cfg.compute.shard)


if __name__ == "__main__":
    sys.exit(main())
