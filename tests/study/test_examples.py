"""The notebook under `examples/`: its cells run one after another, as they stand there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tour.ipynb"


def test_the_notebook_runs(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUN", str(finished.folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 6 and not any(cell["outputs"] for cell in cells)
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "nats a token" in said and "passed  its loss is finite and reaches exactly what the stage trains" in said
    assert "FAILED" not in said and (tmp_path / "mdlm_folder" / "config.json").exists()
    sys.modules.pop("near")
