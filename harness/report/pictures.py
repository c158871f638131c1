"""Samples that are pictures, as one sheet: a column for each method, a row for each budget, the first samples of each.

Pixels are enlarged by whole factors without smoothing, so that a grey level in the file is a grey level of the data.

Shapes: N pictures of H x W pixels; Y x X pixels of a sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.report.canvas import new_figure, write_figure

ROWS = COLUMNS = 4
BUDGETS_SHOWN = 4
_ZOOM = 4  # sheet pixels for each pixel of a picture
_GAP = 3  # between pictures of a block
_MARGIN, _HEADER, _CAPTION = 14, 26, 22  # beside and below blocks; above a column; above a block
_BETWEEN, _WHITE = 128, 255
_DPI = 100


@dataclass(frozen=True)
class Block:
    """The first pictures (N, H, W) uint8 that a sampler drew at a budget; `nfe` is None for held-out data."""

    title: str
    nfe: int | None
    pictures_NHW: np.ndarray


def choose_budgets(budgets: Sequence[int], count: int = BUDGETS_SHOWN) -> list[int]:
    """At most `count` of the budgets, rising: the smallest, the largest, and between them evenly by place."""
    known = sorted(set(budgets))
    if len(known) <= count:
        return known
    places = dict.fromkeys(round(k * (len(known) - 1) / max(1, count - 1)) for k in range(count))
    return [known[place] for place in places]


def tile(pictures_NHW: np.ndarray, rows: int = ROWS, columns: int = COLUMNS, zoom: int = _ZOOM) -> np.ndarray:
    """The first `rows` x `columns` pictures, line by line, enlarged; mid-grey gaps, and where pictures are missing.

    Picture (r, c) begins at pixel `(r (H zoom + 3), c (W zoom + 3))` of the (Y, X) uint8 array.
    """
    height, width = (side * zoom for side in pictures_NHW.shape[1:])
    sheet_YX = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), _BETWEEN, dtype=np.uint8)
    for number, picture_HW in enumerate(pictures_NHW[: rows * columns]):
        y, x = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet_YX[y : y + height, x : x + width] = picture_HW.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return sheet_YX


def places(blocks: Sequence[Block]) -> dict[tuple[int, int], Block]:
    """`(row, column)` of each block: a column for each title in order, its budgets downwards, equal ones side by side.

    Rows are the budgets of the title with the most of them; one with others (a reference, held-out data) starts at the top.
    """
    columns: dict[str, list[Block]] = {}
    for block in blocks:
        columns.setdefault(block.title, []).append(block)
    counted = {title: {block.nfe for block in column} for title, column in columns.items()}
    shared = sorted(nfe for nfe in max(counted.values(), key=len, default=set()) if nfe is not None)
    found: dict[tuple[int, int], Block] = {}
    for number, (title, column) in enumerate(columns.items()):
        aligned = counted[title] <= set(shared)
        ordered = sorted(column, key=lambda block: -1 if block.nfe is None else block.nfe)
        for row, block in enumerate(ordered):
            found[shared.index(block.nfe) if aligned and block.nfe is not None else row, number] = block
    return found


def picture_sheet(blocks: Sequence[Block], path: Path) -> Path | None:
    """Write the sheet as PNG; None without blocks. Pixel positions are those of `corner`."""
    if not blocks:
        return None
    placed = places(blocks)
    tiles = {place: tile(block.pictures_NHW) for place, block in placed.items()}
    size = tuple(max(made.shape[axis] for made in tiles.values()) for axis in (0, 1))
    y, x = corner(max(row for row, _ in placed), max(column for _, column in placed), size)
    height, width = y + size[0] + _MARGIN, x + size[1] + _MARGIN
    canvas_YX = np.full((height, width), _WHITE, dtype=np.uint8)
    for place, made in tiles.items():
        y, x = corner(*place, size)
        canvas_YX[y : y + made.shape[0], x : x + made.shape[1]] = made
    figure = new_figure((width / _DPI, height / _DPI), _DPI, None)
    figure.figimage(np.repeat(canvas_YX[:, :, None], 3, axis=2), 0, 0, origin="upper")
    named: set[int] = set()
    for (row, column), block in sorted(placed.items()):
        y, x = corner(row, column, size)
        budget = "" if block.nfe is None else f"NFE {block.nfe}"
        figure.text(x / width, 1 - (y - 5) / height, budget, fontsize=8, color="#333333", va="baseline")
        if column not in named:
            named.add(column)
            top = corner(0, column, size)[0] - _CAPTION - 5
            figure.text(x / width, 1 - top / height, _short(block.title, size[1]), fontsize=10, va="baseline")
    return write_figure(figure, path)


def corner(row: int, column: int, size: tuple[int, int]) -> tuple[int, int]:
    """Pixel (y, x) from the top left where the block at (row, column) begins; `size` is that of the largest block."""
    return _HEADER + _CAPTION + row * (size[0] + _CAPTION), _MARGIN + column * (size[1] + _MARGIN)


def _short(title: str, width: int) -> str:
    """The title, cut where it would run into the next column (about 7 pixels a character at this size)."""
    room = max(4, math.floor(width / 7.5))
    return title if len(title) <= room else title[: room - 1].rstrip() + "…"
