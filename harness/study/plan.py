"""What a study would do, before it does it: cells, budgets, parameters and an estimate of the time, from short timings."""

from __future__ import annotations

import time

import torch

from harness.jobs.schedule import unfinished
from harness.progress import clock
from harness.study import match
from harness.study.cells import Cell, Weights, data_cell, left_out, make_cells
from harness.study.check import check_study
from harness.study.memory import check_memory
from harness.study.pace import price
from harness.study.runner import worker_count
from harness.study.session import Session
from harness.study.standing import refuse_stale
from harness.study.tasks import cells_by_task, make_tasks, mark
from harness.training.seeds import step_generator


def describe(session: Session) -> str:
    """What `estimate` says, without its number."""
    return estimate(session)[0]


def estimate(session: Session) -> tuple[str, float, int]:
    """Markdown with a row for each cell, then totals; the seconds that are left with the study's workers; training steps.

    Times are measured on a step and two calls of each method. With `scale.match=flops` steps are counted as training counts
    them, but for what a fit takes off them.
    """
    torch.set_num_threads(session.cfg.compute.threads)
    cells = make_cells(session)
    standing = check_study(session, cells, data_cell(session))
    check_memory(session, cells)
    damaged = list(standing.damaged(aside=False))
    refuse_stale(session, standing)
    s, c = session.cfg.study, session.cfg.scale
    lines = [
        f"study {s.name}: {session.data.name}, {len(session.data.splits['train'])} training sequences of {c.length} tokens, "
        f"vocabulary {session.data.vocab_size}, {s.samples} samples for each score",
        "",
        "| cell | parameters | training steps | budgets (NFE) | training | sampling | done |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    all_steps = 0
    seen: set[Weights] = set()  # weights that several cells share are trained once
    timings: dict[str, tuple[int, int, float, float]] = {}
    for cell in cells:
        place = f"{cell.method}/{cell.sampler}"
        if place not in timings:
            timings[place] = _timings(session, cell)
        params, steps, step, call = timings[place]
        trained = cell.weights.trained
        all_steps += steps if cell.weights not in seen else 0
        training = step * steps if trained and cell.weights not in seen else 0.0
        seen.add(cell.weights)
        sampling = sum(max(p.nfe, 1) for p in cell.parts) * call * s.samples
        drawn = sum(cell.samples(session, p).exists() for p in cell.parts)
        done = "all" if drawn == len(cell.parts) else ("trained" if trained and cell.weights.model.exists() else "")
        budgets = ", ".join(str(p.nfe) + ("" if p.temperature == 1 else f"@T{p.temperature:g}") for p in cell.parts)
        lines.append(
            f"| {cell.name} | {params} | {steps or '-'} | {budgets} | {clock(training)} | {clock(sampling)} | {done} |"
        )
    tasks, workers = make_tasks(session, cells, data_cell(session)), worker_count(session)
    mark(session, tasks, cells_by_task(cells, data_cell(session)))
    total = price(session, tasks, workers) if unfinished(tasks) else 0.0
    skipped = left_out(session)
    lines += ["", *skipped, *damaged] if skipped or damaged else []
    if c.match == "flops":
        what = f"steps that cost as much as {c.steps} of the plain masked denoiser"
        lines += ["", f"scale.match=flops: {what}; what a method fits before them is not taken off here"]
    lines += [
        "",
        f"about {clock(total)} in all with {workers} worker(s) on {session.numerics.device} ({session.numerics.precision}) "
        f"from when the data are read. Results go to {session.folder}",
    ]
    return "\n".join(lines), total, all_steps


def _timings(session: Session, cell: Cell) -> tuple[int, int, float, float]:
    """Parameters, training steps, seconds for one of them, and seconds for a call on one sequence."""
    method = session.build(cell.method)
    params = sum(p.numel() for p in method.parameters())
    if not method.stages():
        return 0, 0, 0.0, 1e-4
    method.to(session.numerics.device)
    x_BL = match.first_part(session)
    steps = match.settle(session, cell.method, method).steps
    took = []
    for repeat in range(3):
        method.train()
        method.set_stage(method.stages()[-1].name)
        began = time.perf_counter()
        with session.numerics.autocast():
            loss = method.loss(x_BL, step_generator(session.numerics.device, repeat))
        loss.total.backward()
        took.append(session.cfg.train.accumulate * (time.perf_counter() - began))
    budget = min((p.nfe for p in cell.parts), key=lambda k: abs(k - 4))
    few = 32
    method.eval()
    with torch.inference_mode(), session.numerics.autocast():
        began = time.perf_counter()
        session.sampler(method, cell.method, cell.sampler).draw(few, budget, step_generator(session.numerics.device, 0))
    return params, steps, min(took), (time.perf_counter() - began) / few / budget
