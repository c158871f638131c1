"""Cells (method x sampler x training seed), their parts (budget x temperature) and the files that hold them.

Each file is written once, atomically, and named by the identity of what it holds: a file that exists is finished work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.config.rows import DATA_ROW, budgets_of
from harness.interface import Method, Sampler
from harness.provenance import short_hash
from harness.study.budget import parse_budgets, unmet_budgets
from harness.study.equivalent import equal_budgets
from harness.study.session import Session

#: Bumped when files of a study are called otherwise, or mean something else: a folder of another layout is set aside.
LAYOUT = 4


@dataclass(frozen=True)
class Part:
    """One set of samples of a cell: exactly `nfe` calls at this temperature."""

    nfe: int
    temperature: float

    @property
    def label(self) -> str:
        return f"nfe{self.nfe:04d}-T{self.temperature:g}"


@dataclass(frozen=True)
class Weights:
    """A method trained with one seed: what all of its samplers draw from; `key` identifies it, `folder` holds its files."""

    method: str
    seed: int
    key: str
    folder: Path
    trained: bool = True  # False: counted, or exact; nothing is kept

    @property
    def name(self) -> str:
        return f"{self.method}/seed{self.seed}"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state of a training that is not through."""
        return self.folder / "train.safetensors"

    @property
    def plan(self) -> Path:
        """How many steps it trains, and what was fitted before the first."""
        return self.folder / "plan.json"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.jsonl"

    @property
    def cost(self) -> Path:
        """Parameters, and what training took."""
        return self.folder / "cost.json"

    @property
    def failure(self) -> Path:
        """Why training stopped for good (a loss that is not a number); cleared when the configuration changes."""
        return self.folder / "failed.json"


@dataclass(frozen=True)
class Cell:
    """A sampler on the weights of one seed; `key` identifies both, `folder` holds samples and scores.

    `sampler` is its label in the study; `title` is what method and sampler are called together.
    """

    method: str
    sampler: str
    title: str
    role: str
    seed: int
    key: str
    folder: Path
    parts: tuple[Part, ...]
    weights: Weights

    @property
    def name(self) -> str:
        return f"{self.method}/{self.sampler}/seed{self.seed}" if self.sampler else self.method

    @property
    def headline_temperature(self) -> float:
        """1 where the cell has it, else its first: the one that tracking shows against NFE."""
        temperatures = [part.temperature for part in self.parts]
        return 1.0 if 1.0 in temperatures else temperatures[0]

    def facts(self, session: Session) -> Path:
        """Its bound, whose settings are part of the name, and the budgets where each has a figure of its own."""
        s = session.cfg.study
        name = f"facts-random-b{s.bound_sequences}x{s.bound_draws}"
        if session.data.task is not None:
            name += "-nfe" + "-".join(str(nfe) for nfe in sorted({part.nfe for part in self.parts}))
        return self.folder / f"{name}.json"

    @staticmethod
    def _draw(session: Session, part: Part) -> str:
        """Identity of a draw: budget, number, seed, and the chunk size, since each chunk has a generator of its own."""
        s = session.cfg.study
        chunk = min(session.cfg.compute.sample_batch, s.samples)
        given = "" if s.prompt == "none" else f"-{s.prompt}-{session.held_out_hash}"
        return f"{part.label}-n{s.samples}-s{s.sampling_seed}-c{chunk}{given}"

    def samples(self, session: Session, part: Part) -> Path:
        return self.folder / f"samples-{self._draw(session, part)}.safetensors"

    def scores(self, session: Session, part: Part, protocol: str) -> Path:
        return self.folder / f"scores-{self._draw(session, part)}-{protocol}.json"


def _samplers(session: Session) -> Iterator[tuple[str, str, Sampler, list[int]]]:
    """(method, label, sampler, budgets that the study asks for) of each row; methods are built once, untrained."""
    study = session.cfg.study
    for name, labels in session.rows.items():
        method = session.build(name)
        for label in labels:
            yield name, label, session.sampler(method, name, label), budgets_of(study.nfe_of, study.nfe, name, label)


def make_cells(session: Session) -> list[Cell]:
    """All cells of the study in its order.

    Raises `BudgetError` for a budget that a sampler cannot meet; with `study.unmet=skip`, only where it can meet none.
    """
    cells, study = [], session.cfg.study
    for name, label, sampler, wanted in _samplers(session):
        budgets = parse_budgets(sampler, wanted, study.unmet == "skip")
        role, trained = sampler.role or sampler.method.role, bool(sampler.method.stages())
        # A method without logits has no temperature; a reference is a row of the scale and is not swept either.
        temperatures = study.temperatures if role == "method" else [1.0]
        if role == "method":
            kept = session.cache / "sampling_flops" / f"{session.cell_key(name, label, 0)}.json"
            budgets = tuple(sorted({*budgets, *equal_budgets(sampler, study.equivalent_nfe, kept)}))
        parts = tuple(Part(nfe, float(temperature)) for nfe in budgets for temperature in temperatures)
        # Counting has no randomness, so one seed is all that there is to see.
        for seed in study.seeds if trained else study.seeds[:1]:
            key = session.cell_key(name, label, seed)
            folder = session.folder / "cells" / f"{name}-{label}-seed{seed}-{key}"
            weights = _weights(session, name, sampler.method, seed)
            cells.append(Cell(name, label, sampler.title, role, seed, key, folder, parts, weights))
    return cells


def _weights(session: Session, name: str, method: Method, seed: int) -> Weights:
    """Where the weights are: with those of this study, or of another (`session.weights`)."""
    key = session.weights_key(name, seed)
    home = session.weights or session.folder / "weights"
    return Weights(name, seed, key, home / f"{type(method).__name__.lower()}-seed{seed}-{key}", bool(method.stages()))


def left_out(session: Session) -> list[str]:
    """Lines about what the data lost, and for each sampler that skips a budget of the study, since it cannot meet it."""
    lines = list(session.data.notes)
    for name, label, sampler, wanted in _samplers(session):
        unmet = unmet_budgets(sampler, wanted)
        if unmet:
            budgets = ", ".join(map(str, unmet))
            lines.append(
                f"{name}/{label} is left out at NFE {budgets} (study.unmet=skip): {next(iter(unmet.values()))}"
            )
    return lines


def data_cell(session: Session) -> Cell:
    """Held-out data in the place of samples: the row that every score is read against."""
    key = session.data.fingerprint[:12]
    folder = session.folder / "cells" / f"{DATA_ROW}-{key}"
    weights = Weights(DATA_ROW, 0, key, folder, trained=False)
    return Cell(DATA_ROW, "", "Held-out data", "data", 0, key, folder, (Part(0, 1.0),), weights)


def config_key(session: Session, cells: list[Cell]) -> str:
    """Identity of everything that the study's table depends on, except the weights of a judge that is trained here."""
    parts = [[c.key, c.method, c.sampler, [[p.nfe, p.temperature] for p in c.parts]] for c in cells]
    study = {k: v for k, v in session.tree["study"].items() if k not in ("name", "question")}
    if session.cfg.study.prompt == "none":  # as before there were any
        study.pop("prompt", None)
    return short_hash(
        {
            "layout": LAYOUT,
            "cells": parts,
            "study": study,
            "drawn_at_a_time": min(session.cfg.compute.sample_batch, session.cfg.study.samples),
            "judge": [session.tree["judge"], session.judge_files],
            # With versions: a metric whose definition changed must be scored again.
            "metrics": [metric.identity() for metric in session.metrics],
        },
        12,
    )
