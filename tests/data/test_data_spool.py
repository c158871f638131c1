"""Documents on disk: what went in comes out, memory does not grow with them, and a hub data set goes that way."""

import errno
import tracemalloc

import pytest

from harness.data.chars import Characters, CharactersOptions
from harness.data.files import documents_digest
from harness.data.hub import Hub, HubOptions
from harness.data.spool import Spool
from harness.errors import UserError

TEXTS = ["", "plain", "zwei Wörter\nund mehr", "\ud800 half a pair", "語" * 5000, "last"]


def test_what_went_in_comes_out(tmp_path):
    spool = Spool(tmp_path / "new", TEXTS[:3])
    assert list(spool) == TEXTS[:3] and not list((tmp_path / "new").iterdir()), "its file has no name"
    for text in TEXTS[3:]:
        spool.append(text)
    assert spool == TEXTS and spool != TEXTS[:-1] and len(spool) == len(TEXTS)
    assert spool[-1] == "last" and spool[1:4] == TEXTS[1:4] and spool[::-2] == TEXTS[::-2]
    assert [pair for pair in zip(spool, reversed(spool), strict=True)] == list(zip(TEXTS, TEXTS[::-1], strict=True))
    with pytest.raises(IndexError):
        spool[len(TEXTS)]
    assert documents_digest({"train": spool}) == documents_digest({"train": TEXTS})
    assert not Spool(None)


def test_a_full_disk_is_one_line(tmp_path):
    spool = Spool(tmp_path)

    class Full:
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    spool._file = Full()
    with pytest.raises(UserError, match=r"has no room .* \(No space left on device\); use another cache_dir"):
        spool.append("x")


def test_a_hub_data_set_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """63 MB of text go to ids; memory has a batch of 4M characters with its ids, and not the text."""
    count, text = 600, "abc de " * 15_000

    def rows(self, name, revision):
        yield from (f"{number} {text}" for number in range(count if name == "train" else 5))

    monkeypatch.setattr(Hub, "_rows", rows)
    (tmp_path / "repo").mkdir()
    hub = Hub(HubOptions(repo="someone/things", local=str(tmp_path / "repo")))
    tracemalloc.start()
    try:
        data = hub.load(64, tmp_path / "cache", Characters(CharactersOptions()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.facts["documents_train"] == count and data.facts["bytes_train"] > 6e7
    assert "abc de" in data.decode(data.splits["train"][0])
    assert peak < 4.5e7, f"{peak / 1e6:.0f} MB"
