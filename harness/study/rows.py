"""From the files of a cell to rows of `results.parquet` and to excerpts of its samples."""

from __future__ import annotations

import itertools
import json
import math
from functools import lru_cache
from typing import Any

from harness.interface import Problem
from harness.store import read_json
from harness.study.budget import full_call_flops
from harness.study.cells import DATA_ROW, Cell, Part
from harness.study.session import Session
from harness.study.steps import read_scores, samples_file


@lru_cache(maxsize=8)
def _full_call(problem: Problem) -> int:
    return full_call_flops(problem)


def make_rows(session: Session, cell: Cell, protocol: str | None) -> list[dict[str, Any]]:
    """One row for each part of the cell that has scores; what is not known is None."""
    if protocol is None:
        return []
    facts: dict[str, Any] = {}
    for path in (cell.weights.cost, cell.facts(session)):
        facts |= read_json(path) if path.exists() else {}
    rows = []
    for part in cell.parts:
        record = read_scores(session, cell, part, protocol)
        if record is None:
            continue
        cost, bound = record["cost"], facts.get("nelbo_nats_per_token")
        flops = cost.get("flops_per_seq")
        rows.append(
            {
                "study": session.cfg.study.name,
                "data": session.data.name,
                "method": cell.method,
                "title": cell.title,
                "role": cell.role,
                "sampler": cell.sampler,
                "seed": cell.seed,
                "nfe": None if cell.method == DATA_ROW else part.nfe,
                "nfe_latent": cost.get("nfe_latent"),
                "nfe_token": cost.get("nfe_token"),
                "temperature": part.temperature,
                "n": session.cfg.study.samples,
                "nelbo_nats_per_token": bound,
                "nelbo_se": facts.get("nelbo_se"),
                "bits_per_token": None if bound is None else bound / math.log(2.0),
                "flops_per_seq": flops,
                # What an exact answer costs says nothing about the cost of a network that has learnt it.
                "equivalent_nfe": None
                if flops is None or cell.role == "floor"
                else flops / _full_call(session.problem),
                "seconds_per_seq": cost.get("seconds_per_seq"),
                "params": facts.get("params"),
                "train_tokens": facts.get("train_tokens"),
                "train_flops": facts.get("train_flops"),
                "judge": read_json(session.folder / "protocol.json")["judge"],
                "protocol": protocol,
                "cell": cell.key,
                "time_ms": record["time_ms"],
                **_against_truth(session, facts, part),
                **record["values"],
            }
        )
    return rows


def _against_truth(session: Session, facts: dict[str, Any], part: Part) -> dict[str, Any]:
    """Distances from the data's own law, nats per sequence, with errors; no columns where it is not known."""
    if session.data.task is None:
        return {}
    reverse = facts.get("reverse", {}).get(str(part.nfe), {}) if part.temperature == 1.0 else {}
    return {
        "bound_excess_nats": facts.get("bound_excess_nats"),
        "bound_excess_nats_se": facts.get("bound_excess_nats_se"),
        "reverse_nats": reverse.get("nats"),
        "reverse_nats_se": reverse.get("se"),
        "path_nats": reverse.get("path_nats"),
        "path_nats_se": reverse.get("path_se"),
    }


def samples_of(session: Session, cell: Cell, count: int) -> list[dict[str, Any]]:
    """The first `count` samples of each part that was drawn, as rows for tables of samples."""
    rows = []
    for part in cell.parts:
        path = samples_file(session, cell, part)
        if not path.exists():
            continue
        with open(path, encoding="utf-8") as lines:
            for line in itertools.islice(lines, count):
                text = json.loads(line)["text"]
                nfe = None if cell.method == DATA_ROW else part.nfe
                rows.append({"title": cell.title, "nfe": nfe, "temperature": part.temperature, "text": text})
    return rows
