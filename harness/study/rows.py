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
from harness.study.cells import DATA_ROW, Cell
from harness.study.session import Session
from harness.study.work import read_scores, samples_file


@lru_cache(maxsize=8)
def _full_call(problem: Problem) -> int:
    return full_call_flops(problem)


def make_rows(session: Session, cell: Cell, protocol: str | None) -> list[dict[str, Any]]:
    """One row for each part of the cell that has scores; what is not known is None."""
    if protocol is None:
        return []
    facts_path = cell.facts(session)
    facts = read_json(facts_path) if facts_path.exists() else {}
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
                "equivalent_nfe": None if flops is None else flops / _full_call(session.problem),
                "seconds_per_seq": cost.get("seconds_per_seq"),
                "params": facts.get("params"),
                "train_tokens": facts.get("train_tokens"),
                "train_flops": facts.get("train_flops"),
                "judge": read_json(session.folder / "protocol.json")["judge"],
                "protocol": protocol,
                "cell": cell.key,
                "time_ms": record["time_ms"],
                **record["values"],
            }
        )
    return rows


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
