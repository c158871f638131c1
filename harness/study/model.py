"""A model that a study has trained, for use from Python: it draws texts, says how likely they are, and asks the judge.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from harness.errors import UserError, nearest
from harness.judges.base import TextScores
from harness.study.budget import parse_budgets
from harness.study.cells import Cell, Part, make_cells
from harness.study.sampling import draw_samples
from harness.study.session import Session
from harness.study.steps import load_sampler
from harness.training.seeds import step_generator


class Model:
    """The sampler of a finished cell on its trained method. `session` is that of its study: data, judge, metrics."""

    def __init__(self, session: Session, cell: Cell) -> None:
        self.session, self.cell = session, cell
        self.sampler = load_sampler(session, cell)

    def draw_ids(self, n: int, nfe: int, seed: int | None = None, temperature: float = 1.0) -> np.ndarray:
        """`n` samples (N, L) at a budget; without a seed those of the study, to the bit where n is the study's too.

        Raises `UserError` for a budget that cannot be met.
        """
        if n < 1:
            raise UserError(f"n={n}: draw 1 or more")
        parse_budgets(self.sampler, [nfe])
        study, chunk = self.session.cfg.study, self.session.cfg.compute.sample_batch
        seeds = study.sampling_seed if seed is None else seed, self.cell.seed
        part = Part(nfe, temperature)
        return draw_samples(self.sampler, part, n, chunk, seeds, self.session.numerics, lambda done, total: None).x_NL

    def draw(self, n: int, nfe: int, seed: int | None = None, temperature: float = 1.0) -> list[str]:
        """The same as texts."""
        return [self.session.data.decode(row) for row in self.draw_ids(n, nfe, seed, temperature).tolist()]

    def bound(self, x_NL: np.ndarray, seed: int = 0) -> np.ndarray | None:
        """One draw of the upper bound on `-log p(x)` of each sample, (N,) nats; None where the sampler has none."""
        generator = step_generator(self.session.numerics.device, seed)
        x_BL = torch.from_numpy(np.asarray(x_NL, dtype=np.int64)).to(self.session.numerics.device)
        with torch.no_grad():
            found = self.sampler.bound(x_BL, generator)
        return None if found is None else found.total_B.cpu().numpy()

    def judge(self, texts: Sequence[str]) -> TextScores:
        """Nats and scored tokens of each text under the study's judge, which is trained or loaded at the first call."""
        judge = self.session.ready_judge(lambda text: None)
        if not judge.has_likelihood:
            raise UserError(
                f"judge {judge.identity} says nothing of how likely a text is; use a study with another judge"
            )
        return judge.score(list(texts))


def load(run: str | Path, method: str, seed: int | None = None) -> Model:
    """The model of `method` (or method/sampler) in the folder of a study, such as `runs/few_step`; its first seed unless told.

    Raises `UserError` in one line where there is none.
    """
    folder = Path(run).expanduser().resolve()
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"run={run}: there is no config.yaml; give the folder of a study that has run, such as runs/few_step"
        )
    tree: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    # Where the folder is now, wherever it was made; nothing is written there.
    tree["runs_dir"], tree["study"]["name"] = str(folder.parent), folder.name
    session = Session(tree)
    cells = make_cells(session)
    names = list(dict.fromkeys(name for cell in cells for name in (cell.method, f"{cell.method}/{cell.sampler}")))
    if method not in names:
        raise UserError(f"method={method}: is not in {folder}{nearest(method, names)}")
    own = [cell for cell in cells if method in (cell.method, f"{cell.method}/{cell.sampler}")]
    found = [cell for cell in own if seed is None or cell.seed == seed]
    if not found:
        raise UserError(f"seed={seed}: {method} has the seeds {', '.join(sorted({str(cell.seed) for cell in own}))}")
    weights = found[0].weights
    if weights.trained and not weights.model.exists():
        raise UserError(
            f"run={run}: {weights.model.parent.name} is not there; run the study to its end, on a device of the same kind"
        )
    return Model(session, found[0])
