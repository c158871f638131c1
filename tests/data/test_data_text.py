"""Local text: every layout that is read, and one line for every file that cannot be."""

import gzip
import json
import tracemalloc

import pytest

from harness.data import stream
from harness.data.chars import Characters, CharactersOptions
from harness.data.text import Text, TextOptions
from harness.errors import UserError

LINES = [f"line number {number}" for number in range(100)]


def corpus(path, **options):
    return Text(TextOptions(path=str(path), **options)).corpus()


def write(path, lines):
    text = "\n".join(lines) + "\n"
    if ".jsonl" in path.name:
        text = "".join(json.dumps({"text": line, "body": line.upper()}) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("valid", ["valid", "val", "validation", "dev"])
def test_folder_with_a_file_for_each_split(tmp_path, suffix, valid):
    for name, lines in (("train", LINES), (valid, LINES[:3]), ("test", LINES[5:7])):
        write(tmp_path / f"{name}{suffix}", lines)
    (tmp_path / "README.md").write_text("not data")
    found = corpus(tmp_path)
    assert found.documents == {"train": LINES, "valid": LINES[:3], "test": LINES[5:7]}
    assert found.facts["held_out_of_train"] == "nothing"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl.gz"])
def test_one_file_is_cut_in_blocks(tmp_path, suffix):
    found = corpus(write(tmp_path / f"a{suffix}", LINES), valid_fraction=0.1, test_fraction=0.2)
    assert found.documents == {"train": LINES[:70], "valid": LINES[70:80], "test": LINES[80:]}
    assert found.name == "a" and found.facts["held_out_of_train"] == "valid, test"


def test_folder_without_a_test_file_holds_it_out(tmp_path):
    write(tmp_path / "train.txt", LINES)
    write(tmp_path / "valid.txt", ["a line of its own"])
    found = corpus(tmp_path, test_fraction=0.1)
    assert found.documents == {"train": LINES[:90], "valid": ["a line of its own"], "test": LINES[90:]}
    assert found.facts["held_out_of_train"] == "test"


def test_kinds_of_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n\r\n\r\nfour\r\n")
    assert sum(corpus(path, documents="lines").documents.values(), []) == ["one", "two", "three", "four"]
    assert sum(corpus(path, documents="paragraphs").documents.values(), []) == ["one\ntwo", "three", "four"]
    whole = corpus(path, documents="whole", valid_fraction=0.25, test_fraction=0.25).documents
    assert whole == {"train": ["one\ntwo\n\nt"], "valid": ["hree\n\n"], "test": ["\nfour\n"]}
    assert "".join(sum(whole.values(), [])) == "one\ntwo\n\nthree\n\n\nfour\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_every_ending_of_a_line_ends_one(tmp_path, end):
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(["one two", "three", "", "four", "", "five", ""]).encode())
    assert sum(corpus(path).documents.values(), []) == ["one two", "three", "four", "five"]
    paragraphs = sum(corpus(path, documents="paragraphs").documents.values(), [])
    assert paragraphs == ["one two\nthree", "four", "five"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"one{end}two {k}"}) + "\n" for k in range(9)))
    assert corpus(tmp_path / "a.jsonl").documents["train"][0] == "one\ntwo 0"


def test_lines_of_white_space_separate_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n one\ntwo\n \t\nthree\n\u00a0\n\n  \nfour\n ")
    assert sum(corpus(path, documents="paragraphs").documents.values(), []) == ["one\ntwo", "three", "four"]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_blocks_cut_nothing(tmp_path, monkeypatch, block):
    """Neither a character of several bytes, nor a CRLF, nor the byte-order mark, nor the place of a bad byte."""
    monkeypatch.setattr(stream, "_BLOCK", block)
    (tmp_path / "a.txt").write_bytes("\ufeffcaf\u00e9\r\nna\u00efve \U0001f600\r\rend".encode())
    assert sum(corpus(tmp_path / "a.txt").documents.values(), []) == ["caf\u00e9", "na\u00efve \U0001f600", "end"]
    for bad in (b"\xff\n", b"\xc3"):
        (tmp_path / "b.txt").write_bytes("caf\u00e9 \r\nna\u00efve ".encode() + bad)
        with pytest.raises(UserError, match=r"not UTF-8 \(byte 15\)"):
            corpus(tmp_path / "b.txt")


def test_lone_surrogates_are_replaced_and_counted(tmp_path):
    lines = [
        '{"text": "half \\ud83d of it"}',
        '{"text": "all \\ud83d\\ude00 of it"}',
        '{"text": "\\udfff and \\ud800"}',
    ] * 3
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = corpus(tmp_path / "a.jsonl")
    assert found.documents["train"][:3] == ["half \ufffd of it", "all \U0001f600 of it", "\ufffd and \ufffd"]
    assert found.notes == (f"{tmp_path / 'a.jsonl'} has 9 lone surrogate(s), read as U+FFFD",)
    assert corpus(write(tmp_path / "b.jsonl", LINES)).notes == ()


@pytest.mark.parametrize(
    ("name", "content", "documents", "words"),
    [
        ("a.txt", b"short\n" + b"x" * 300 + b"\nshort", "lines", "a line of more than 256 characters"),
        ("a.txt", b"x" * 300, "lines", "a line of more than 256 characters.*break it into lines"),
        ("a.jsonl", b'{"text": "' + b"x" * 300 + b'"}', "lines", "a line of more than 256 characters"),
        ("a.txt", b"short\n" * 50, "paragraphs", "a paragraph of more than 256 characters.*data.documents=lines"),
        ("a.txt", b"short\n\n" * 50, "whole", "a text of more than 256 characters.*data.documents=lines"),
        ("a.txt.gz", gzip.compress(b"ab\n" * 5000, mtime=0), "lines", "unpacks to more than 50 times its size"),
    ],
)
def test_what_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch, name, content, documents, words):
    for limit, value in (("LONGEST_DOCUMENT", 256), ("ALWAYS_UNPACKED", 1000), ("_BLOCK", 100)):
        monkeypatch.setattr(stream, limit, value)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        corpus(tmp_path / name, documents=documents)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
    (tmp_path / "fits.txt.gz").write_bytes(gzip.compress(b"\n".join(b"%d of many" % k for k in range(200))))
    assert len(corpus(tmp_path / "fits.txt.gz").documents["train"]) == 180


@pytest.mark.parametrize(
    ("unit", "words"), [(b"\0", "NUL at byte 0"), (b"a ", "unpacks to more than 50 times its size")]
)
def test_a_bomb_takes_no_memory(tmp_path, monkeypatch, unit, words):
    monkeypatch.setattr(stream, "ALWAYS_UNPACKED", 1 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(unit * ((1 << 25) // len(unit))))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words):
            corpus(tmp_path / "a.txt.gz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_field_of_json_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    assert corpus(path, field="body").documents["train"][0] == "LINE NUMBER 0"


def test_fingerprint_is_that_of_the_content(tmp_path):
    first = corpus(write(tmp_path / "a.txt", LINES))
    assert corpus(write(tmp_path / "b.txt.gz", LINES)).fingerprint == first.fingerprint
    assert corpus(write(tmp_path / "c.txt", [*LINES[:-1], "other"])).fingerprint != first.fingerprint
    assert corpus(tmp_path / "a.txt", test_fraction=0.1).fingerprint != first.fingerprint


def test_loads_to_sequences(tmp_path):
    path = write(tmp_path / "a.txt", LINES)
    data = Text(TextOptions(str(path))).load(10, tmp_path / "cache", Characters(CharactersOptions()))
    assert data.decode(data.splits["train"].ravel()).startswith("line number 0\nline number 1\n")


BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b"\n  \n\n", "is empty"),
    "nul.txt": (b"some text\x00more", "NUL at byte 9"),
    "latin.txt": ("caf\u00e9 is here".encode("latin-1"), r"not UTF-8 \(byte 3\)"),
    "cut.txt.gz": (gzip.compress(b"some text " * 1000)[:-20], "not a whole gzip file"),
    "plain.txt.gz": (b"this is not packed", "not a whole gzip file"),
    "flipped.txt.gz": (gzip.compress(b"some text")[:-8] + b"\0" * 8, "not a whole gzip file"),
    "keys.jsonl": (b'{"text": "a"}\n\n{"txt": "b"}\n', "line 3 has no text under data.field=text; did you mean 'txt'"),
    "number.jsonl": (b'{"text": 3}\n', "line 1 has no text"),
    "list.jsonl": (b'["text"]\n', "line 1 has no text"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    "blank.jsonl": (b'{"text": " "}\n', "is empty under data.field=text"),
    "table.csv": (b"a,b\n", "unknown ending; choose one of .jsonl, .jsonl.gz, .txt, .txt.gz"),
    "noending": (b"text", "unknown ending"),
    "short.txt": (b"one\ntwo\n", "2 documents, too few"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_line(tmp_path, name):
    content, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        corpus(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_missing_path_names_the_nearest(tmp_path):
    write(tmp_path / "books.txt", LINES)
    with pytest.raises(UserError, match=r"'boks.txt' is not in .*; did you mean 'books.txt'\?"):
        corpus(tmp_path / "boks.txt")
    with pytest.raises(UserError, match="'nowhere' is not in"):
        corpus(tmp_path / "nowhere" / "deep" / "a.txt")


def test_no_path():
    for path in ("", "???"):
        with pytest.raises(UserError, match="data.path is empty"):
            corpus(path)


def test_folder_without_a_training_file(tmp_path):
    with pytest.raises(UserError, match=r"no training file \(no files\)"):
        corpus(tmp_path)
    write(tmp_path / "test.txt", LINES)
    with pytest.raises(UserError, match=r"no training file \(test.txt\)"):
        corpus(tmp_path)


def test_two_files_for_a_split(tmp_path):
    write(tmp_path / "train.txt", LINES)
    write(tmp_path / "train.jsonl", LINES)
    with pytest.raises(UserError, match="more than one train file"):
        corpus(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        corpus(write(tmp_path / "a.txt", LINES), **options)
