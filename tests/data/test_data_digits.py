"""Digits as tokens: the split, the grey levels, the text and the pictures."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from harness.data.base import SPLITS
from harness.data.digits import CLASSES, Digits, DigitsOptions, decode, encode, quantise, split_rows
from harness.errors import UserError


def load(levels: int = 17):
    return Digits(DigitsOptions(levels)).load(64, None, None)


DATA = load()


def test_every_picture_is_in_exactly_one_split_with_its_label():
    source = load_digits()
    known = {tuple(x.astype(int)): int(label) for x, label in zip(source.data, source.target, strict=True)}
    assert len(known) == 1797  # no picture occurs twice, so that places can be told by content
    seen = [tuple(row.tolist()) for split in SPLITS for row in DATA.splits[split]]
    assert len(seen) == len(set(seen)) == 1797
    for split in SPLITS:
        assert [known[tuple(row.tolist())] for row in DATA.splits[split]] == DATA.labels[split].tolist()


def test_sizes_leave_400_for_the_reference_and_400_for_the_held_out_row():
    assert [len(DATA.splits[split]) for split in SPLITS] == [997, 100, 700]


def test_classes_have_the_same_share_in_every_split():
    total = np.bincount(load_digits().target, minlength=CLASSES)
    for split in SPLITS:
        counts = np.bincount(DATA.labels[split], minlength=CLASSES)
        assert np.abs(counts - total * len(DATA.splits[split]) / 1797).max() <= 1.0


def test_rows_are_not_sorted_by_class():
    # Whoever looks at the first rows sees all classes.
    for split in SPLITS:
        assert len(set(DATA.labels[split][:60].tolist())) == CLASSES


def test_split_rows_by_hand():
    parts = split_rows(np.array([0] * 6 + [1] * 4), valid=2, test=5)
    assert [len(part) for part in parts] == [3, 2, 5]
    assert sorted(np.concatenate(parts).tolist()) == list(range(10))
    assert (parts[2] < 6).sum() == 3  # half of six and half of four


def test_levels():
    grey = np.arange(17)
    assert (quantise(grey, 17) == grey).all()
    assert quantise(grey, 2).tolist() == [0] * 8 + [1] * 9
    assert quantise(grey, 4).tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 4
    for levels in range(2, 18):
        assert set(quantise(grey, levels).tolist()) == set(range(levels))
    two = load(2)
    assert two.vocab_size == 2 and two.name == "digits-2" and two.fingerprint != DATA.fingerprint
    assert (two.splits["test"] == (DATA.splits["test"] >= 8)).all()  # the split does not depend on the levels


def test_text_and_back():
    row = list(range(17)) + [0] * 46 + [16]
    text = decode(row)
    lines = text.split("\n")
    assert lines[:3] == ["01234567", "89abcdef", "g0000000"] and len(lines) == 8 and lines[-1] == "0000000g"
    assert encode([text]).tolist() == [row]
    assert encode([text.replace("\n", "")]).tolist() == [row]
    assert encode([]).shape == (0, 64)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "0" * 63 + "h", "a sentence"])
def test_what_is_no_picture_is_refused(text):
    with pytest.raises(UserError, match="no picture"):
        encode([text])


def test_render_shows_ink_as_brightness():
    ids = np.array([[0] * 63 + [16], [8] + [0] * 63])
    pictures = DATA.render(ids)
    assert pictures.shape == (2, 8, 8) and pictures.dtype == np.uint8
    assert pictures[0, 7, 7] == 255 and pictures[0, 0, 0] == 0 and pictures[1, 0, 0] == 128
    assert load(2).render(np.ones((1, 64), dtype=int)).min() == 255
    assert (np.argsort(DATA.render(np.arange(17).repeat(64).reshape(17, 64))[:, 0, 0]) == np.arange(17)).all()


def test_options_and_lengths_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="scale.length=64"):
        Digits(DigitsOptions()).load(32, None, None)
