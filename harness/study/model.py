"""A model that a study has trained, for use from Python: it draws texts, says how likely they are, and asks the judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from harness.errors import UserError, nearest
from harness.judges.base import TextScores
from harness.study.cells import Cell, make_cells
from harness.study.drawing import load_sampler
from harness.study.exported import WEIGHTS, Drawn, export, load_exported, push
from harness.study.session import Session


class Model(Drawn):
    """The sampler of a finished cell on its trained method. `session` is that of its study: data, judge, metrics."""

    def __init__(self, session: Session, cell: Cell) -> None:
        self.session, self.cell = session, cell
        seeds = session.cfg.study.sampling_seed, cell.seed
        chunk, sampler = session.cfg.compute.sample_batch, load_sampler(session, cell)
        super().__init__(sampler, session.data.decode, session.numerics, chunk, seeds)

    def judge(self, texts: Sequence[str]) -> TextScores:
        """Nats and scored tokens of each text under the study's judge, which is trained or loaded at the first call."""
        judge = self.session.ready_judge(lambda text: None)
        if not judge.has_likelihood:
            raise UserError(
                f"judge {judge.identity} says nothing of how likely a text is; use a study with another judge"
            )
        return judge.score(list(texts))

    def export(self, folder: str | Path) -> Path:
        """Write weights, configuration and tokenizer into a folder that `harness.load` takes; raises `UserError`."""
        if not self.cell.weights.trained:
            raise UserError(f"{self.cell.method} has no weights that were trained here: there is nothing to export")
        path = Path(folder).expanduser()
        cell = self.cell
        export(cell.weights.model, self.session.described(cell.method, cell.seed), cell.title, path)
        return path

    def push_to_hub(self, repository: str, private: bool = True) -> str:
        """Export to a repository of the hub (OWNER/NAME), made if it is not there; its address. Raises `UserError`."""
        with TemporaryDirectory() as folder:
            return push(self.export(folder), repository, private)


def load(run: str | Path, method: str = "", seed: int | None = None) -> Drawn:
    """The model of `method` (or method/sampler) in the folder of a study, such as `runs/few_step`; its first seed unless told.

    Of a folder that a model was exported to, `method` is a sampler, or left out. Raises `UserError` in one line where
    there is none.
    """
    folder = Path(run).expanduser().resolve()
    if (folder / WEIGHTS).is_file():
        return load_exported(folder, method)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"run={run}: there is no config.yaml; give the folder of a study that has run, such as runs/few_step"
        )
    return Model(*_found(folder, run, method, seed))


def _found(folder: Path, run: str | Path, method: str, seed: int | None) -> tuple[Session, Cell]:
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
    return session, found[0]
