"""Cells (method x training seed), their parts (budget x temperature) and the files that hold them.

Each file is written once, atomically, and named by the identity of what it holds: a file that exists is finished work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.interface import Method
from harness.study.budget import parse_budgets, unmet_budgets
from harness.study.session import Session

DATA_ROW = "data"


@dataclass(frozen=True)
class Part:
    """One set of samples of a cell: exactly `nfe` calls at this temperature."""

    nfe: int
    temperature: float

    @property
    def label(self) -> str:
        return f"nfe{self.nfe:04d}-T{self.temperature:g}"


@dataclass(frozen=True)
class Cell:
    """A method trained with one seed; `key` identifies it and its sampler, `folder` holds its samples and scores.

    Its weights are in `home` and identified by `weights`; cells that differ only in how they sample share them.
    """

    method: str
    title: str
    role: str
    sampler: str
    seed: int
    key: str
    folder: Path
    parts: tuple[Part, ...]
    trained: bool = True  # False: counted, or exact; nothing is kept but its samples
    weights: str = ""
    home: Path = Path()

    @property
    def name(self) -> str:
        return f"{self.method}/seed{self.seed}"

    @property
    def model(self) -> Path:
        return self.home / "model.safetensors"

    @property
    def curves(self) -> Path:
        return self.home / "curves.jsonl"

    @property
    def failure(self) -> Path:
        """Why training stopped for good (a loss that is not a number); cleared when the configuration changes."""
        return self.home / "failed.json"

    def facts(self, session: Session) -> Path:
        """Cost and bound; the bound's settings are part of the name, and the budgets where each has a figure of its own."""
        s = session.cfg.study
        name = f"facts-b{s.bound_sequences}x{s.bound_draws}"
        if session.data.task is not None:
            name += "-nfe" + "-".join(str(nfe) for nfe in sorted({part.nfe for part in self.parts}))
        return self.folder / f"{name}.json"

    @staticmethod
    def _draw(session: Session, part: Part) -> str:
        """Identity of a draw: budget, number, seed, and the chunk size, since each chunk has a generator of its own."""
        s = session.cfg.study
        chunk = min(session.cfg.compute.sample_batch, s.samples)
        return f"{part.label}-n{s.samples}-s{s.sampling_seed}-c{chunk}"

    def samples(self, session: Session, part: Part) -> Path:
        return self.folder / f"samples-{self._draw(session, part)}.safetensors"

    def scores(self, session: Session, part: Part, protocol: str) -> Path:
        return self.folder / f"scores-{self._draw(session, part)}-{protocol}.json"


def _wanted(session: Session, name: str) -> list[int]:
    """The budgets that the study asks of a method."""
    study = session.cfg.study
    return study.nfe_of.get(name, study.nfe)


def make_cells(session: Session) -> list[Cell]:
    """All cells of the study in its order.

    Raises `BudgetError` for a budget that a method cannot meet; with `study.unmet=skip`, only where it can meet none.
    """
    cells = []
    for name in session.method_names():
        method = session.build(name)
        budgets = parse_budgets(method, _wanted(session, name), session.cfg.study.unmet == "skip")
        # A method without logits has no temperature; a reference is a row of the scale and is not swept either.
        heats = session.cfg.study.temperatures if method.role == "method" else [1.0]
        parts = tuple(Part(nfe, float(heat)) for nfe in budgets for heat in heats)
        # Counting has no randomness, so one seed is all that there is to see.
        seeds = session.cfg.study.seeds if method.stages() else session.cfg.study.seeds[:1]
        for seed in seeds:
            key = session.cell_key(name, seed)
            folder = session.folder / "cells" / f"{name}-seed{seed}-{key}"
            weights = session.weights_key(name, method, seed)
            cells.append(
                Cell(
                    name, method.title, method.role, method.sampler, seed, key, folder, parts,
                    bool(method.stages()), weights, _home(session, method, seed, weights, folder),
                )
            )  # fmt: skip
    return cells


def _home(session: Session, method: Method, seed: int, weights: str, folder: Path) -> Path:
    """Where the weights are: with the cell, unless others have the same, from this study or another (`session.weights`)."""
    name = f"{type(method).__name__.lower()}-seed{seed}-{weights}"
    if session.weights is None or not method.stages():
        return session.folder / "weights" / name if method.sampling_options else folder
    theirs = session.weights.parent / "cells" / folder.name  # of a method that shares with none, trained by that study
    return theirs if (theirs / "model.safetensors").exists() else session.weights / name


def left_out(session: Session) -> list[str]:
    """A line for each method that skips a budget of the study, since it cannot meet it."""
    lines = []
    for name in session.method_names():
        unmet = unmet_budgets(session.build(name), _wanted(session, name))
        if unmet:
            budgets = ", ".join(map(str, unmet))
            lines.append(f"{name} is left out at NFE {budgets} (study.unmet=skip): {next(iter(unmet.values()))}")
    return lines


def data_cell(session: Session) -> Cell:
    """Held-out data in the place of samples: the row that every score is read against."""
    key = session.data.fingerprint[:12]
    folder = session.folder / "cells" / f"{DATA_ROW}-{key}"
    return Cell(DATA_ROW, "Held-out data", "data", "", 0, key, folder, (Part(0, 1.0),), trained=False, home=folder)
