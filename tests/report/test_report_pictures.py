"""Sheets of pictures: the right pixels at the right places, and that a report shows them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from harness.metrics.base import Column
from harness.report.pictures import Block, choose_budgets, corner, picture_sheet, places, tile
from harness.report.report import write_report


def pictures(seed: int, n: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(n, 8, 8), dtype=np.uint8)


def read(path) -> np.ndarray:
    """(Y, X) grey levels; fails where the file is not grey."""
    image = np.rint(imread(path)[..., :3] * 255).astype(int)
    assert (image == image[..., :1]).all()
    return image[..., 0]


def test_tile_places_each_picture():
    made = tile(np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]], dtype=np.uint8), 2, 2, zoom=2)
    assert made.shape == (2 * 4 + 3, 2 * 4 + 3) and made.dtype == np.uint8
    first = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert made[:2, :2].tolist() == [[1, 1], [1, 1]] and tile(np.array([[[1, 2], [3, 4]]]), 1, 1, 2).tolist() == first


def test_tile_by_formula_and_its_gaps():
    given = pictures(0, 5)
    made = tile(given, rows=2, columns=3, zoom=4)
    assert made.shape == (2 * 32 + 3, 3 * 32 + 2 * 3)
    for number in range(5):
        y, x = number // 3 * 35, number % 3 * 35
        assert (made[y : y + 32 : 4, x : x + 32 : 4] == given[number]).all()
        assert (made[y + 3 : y + 32 : 4, x + 3 : x + 32 : 4] == given[number]).all()
    assert (made[32:35] == 128).all() and (made[35:, 70:] == 128).all()
    assert (tile(pictures(1, 40), 2, 3) == tile(pictures(1, 40)[:6], 2, 3)).all()


def test_budgets_that_fit():
    assert choose_budgets([64, 2, 4, 8]) == [2, 4, 8, 64]
    assert choose_budgets([2, 4, 8, 16, 32]) == [2, 4, 16, 32]
    assert choose_budgets([1, 2, 4, 8, 16, 32, 64]) == [1, 4, 16, 64]
    assert choose_budgets([3]) == [3] and choose_budgets([]) == []
    assert choose_budgets([1, 2, 3], 1) == [1]


def test_places_line_up_equal_budgets():
    blocks = [Block("data", None, pictures(0)), *(Block("A", k, pictures(k)) for k in (8, 2, 4))]
    blocks += [Block("B", 4, pictures(5)), Block("B", 8, pictures(6)), Block("AR", 64, pictures(7))]
    placed = {place: (block.title, block.nfe) for place, block in places(blocks).items()}
    assert placed == {
        (0, 0): ("data", None), (0, 1): ("A", 2), (1, 1): ("A", 4), (2, 1): ("A", 8),
        (1, 2): ("B", 4), (2, 2): ("B", 8), (0, 3): ("AR", 64),
    }  # fmt: skip


def test_the_file_holds_every_pixel_at_its_place(tmp_path):
    blocks = [Block("Held-out data", None, pictures(1)), Block("A very long name of a method", 2, pictures(2))]
    blocks += [Block("A very long name of a method", 64, pictures(3, n=5))]
    path = picture_sheet(blocks, tmp_path / "figures" / "pictures.png")
    sheet = read(path)
    for place, block in places(blocks).items():
        expected = tile(block.pictures_NHW)
        y, x = corner(*place, expected.shape)
        assert (sheet[y : y + expected.shape[0], x : x + expected.shape[1]] == expected).all(), place
    y, x = corner(1, 0, expected.shape)
    assert (sheet[y : y + expected.shape[0], x : x + expected.shape[1]] == 255).all()  # nothing was drawn there
    assert (sheet[: corner(0, 0, expected.shape)[0]] < 128).any()  # the names
    assert (sheet[:, -5:] == 255).all()  # and they stay within the sheet
    again = picture_sheet(blocks, tmp_path / "again.png")
    assert path.read_bytes() == again.read_bytes()


def test_no_blocks_no_file(tmp_path):
    assert picture_sheet([], tmp_path / "pictures.png") is None and not any(tmp_path.iterdir())


@pytest.mark.parametrize("shown", [True, False])
def test_the_report_embeds_the_sheet(tmp_path, shown):
    row = {"data": "d", "protocol": "p", "title": "A", "method": "a", "sampler": "s", "role": "method", "seed": 0}
    row |= {"nfe": 2, "nfe_latent": 0, "nfe_token": 2, "temperature": 1.0, "n": 8, "score": 1.0, "score_se": 0.1}
    row |= {"params": 1, "train_tokens": 1, "train_flops": 1.0, "flops_per_seq": 1.0, "equivalent_nfe": 2.0}
    row |= {"seconds_per_seq": 0.1, "nelbo_nats_per_token": float("nan"), "nelbo_se": float("nan")}
    blocks = [Block("A", 2, pictures(0))] if shown else []
    column = Column("score", "Score", "", "lower")
    report = write_report(tmp_path, pd.DataFrame([row]), [column], {"pictures": blocks}).read_text()
    assert ("](figures/pictures.png)" in report) is shown
    assert (tmp_path / "figures" / "pictures.png").exists() is shown
