"""Reports in tests draw PNG alone: PDF and SVG take as long again, and `test_figures.py` asks for them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def png_alone(monkeypatch) -> None:
    monkeypatch.setattr("harness.report.canvas.VECTORS", ())
