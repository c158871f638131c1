"""Packing of documents into sequences: exact ids, cut ends, fingerprints, and a cache that is never trusted blindly."""

import dataclasses
import json
import os

import numpy as np
import pytest

from harness.data import encode
from harness.data import pack as module
from harness.data.base import SPLITS, Corpus
from harness.data.bpe import ByteBPE, ByteBPEOptions
from harness.data.chars import Characters, CharactersOptions
from harness.data.files import documents_digest, held_out
from harness.data.pack import file_digest, pack
from harness.data.tokenizers import Tokenizer, TokenizerSpec
from harness.errors import UserError


class Letters(Tokenizer):
    """a=0, b=1, ...; documents are separated by `separator`."""

    def __init__(self, vocab_size=26, separator=(25,)):
        self.vocab_size, self.identity = vocab_size, f"letters-{vocab_size}-{separator}"
        self.separator, self.separator_bytes = separator, len(separator)
        self.calls = 0

    def encode_batch(self, documents):
        self.calls += 1
        return [np.array([ord(c) - 97 for c in d if c != "-"], dtype=np.int64) for d in documents]

    def decode(self, ids):
        return "".join(chr(97 + int(i)) for i in ids)


class Deadly(Letters):
    """The kernel ends the process that it is used in."""

    def encode_batch(self, documents):
        os._exit(9)


class Spec(TokenizerSpec):
    def build(self, documents, cache, key):
        self.seen = (documents, key)
        return self.options


def corpus(train=("abc", "de", "f"), valid=("abcd",), test=("aaaa", "bbbb")):
    documents = {"train": list(train), "valid": list(valid), "test": list(test)}
    return Corpus("letters", documents, documents_digest(documents), {"origin": "here"})


def test_exact_ids_and_facts(tmp_path):
    spec = Spec(Letters())
    data = pack(corpus(), spec, 3, tmp_path)
    # abc | de | f with z between: a b c z d e z f, of which six fill two rows.
    assert data.splits["train"].tolist() == [[0, 1, 2], [25, 3, 4]]
    assert data.splits["valid"].tolist() == [[0, 1, 2]]
    assert data.splits["test"].tolist() == [[0, 0, 0], [0, 25, 1], [1, 1, 1]]
    assert spec.seen == (["abc", "de", "f"], corpus().fingerprint)
    assert data.decode(data.splits["train"][1]) == "zde"
    assert data.splits["train"].dtype == np.uint16
    assert (data.vocab_size, data.length, data.name) == (26, 3, "letters")
    assert data.facts["tokens_train"] == 8 and data.facts["documents_train"] == 3
    assert data.facts["bytes_train"] == 8 and data.facts["bytes_per_token_train"] == 1.0
    assert data.facts["origin"] == "here"


def test_documents_without_ids_leave_no_separator(tmp_path):
    data = pack(corpus(train=("-", "ab", "--", "cd", "-"), valid=("abcde",)), Spec(Letters()), 5, tmp_path)
    assert data.splits["train"].tolist() == [[0, 1, 25, 2, 3]]


def test_no_separator(tmp_path):
    data = pack(corpus(valid=("abcdef",)), Spec(Letters(separator=())), 6, tmp_path)
    assert data.splits["train"].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_large_vocabulary_is_int32(tmp_path):
    assert pack(corpus(), Spec(Letters(vocab_size=65536)), 3, tmp_path).splits["train"].dtype == np.uint16
    assert pack(corpus(), Spec(Letters(vocab_size=65537)), 3, tmp_path).splits["train"].dtype == np.int32


def test_fingerprint_follows_content_tokenizer_and_length(tmp_path):
    def fingerprint(length=3, tokenizer=None, **documents):
        return pack(corpus(**documents), Spec(tokenizer or Letters()), length, tmp_path).fingerprint

    base = fingerprint()
    assert fingerprint() == base
    others = [
        fingerprint(length=2),
        fingerprint(tokenizer=Letters(vocab_size=27)),
        fingerprint(train=("abc", "de", "g")),
        fingerprint(train=("abcd", "e", "f")),
    ]
    assert len({base, *others}) == 5


def test_a_stream_is_what_numpy_saves_and_no_batch_shows_in_it(tmp_path, monkeypatch):
    documents = ["abc" * k for k in range(40)]
    seen, records = [], []

    class Watched(Letters):
        def encode_batch(self, documents):
            seen.append(sum(map(len, documents)))
            return super().encode_batch(documents)

    for place, characters in (("whole", 1 << 22), ("pieces", 50)):
        monkeypatch.setattr(encode, "_CHARACTERS_A_BATCH", characters)
        pack(corpus(train=documents), Spec(Watched()), 3, tmp_path / place)
        files = sorted((tmp_path / place).glob("tokens-*"))
        records.append([file.read_bytes() for file in files])
    assert records[0] == records[1] and max(seen[4:]) < 50 + 3 * 40
    for file in files:
        if file.suffix == ".npy":
            np.save(tmp_path / "saved.npy", np.load(file))
            assert (tmp_path / "saved.npy").read_bytes() == file.read_bytes()


def test_stream_is_encoded_once_for_all_lengths(tmp_path):
    tokenizer = Letters()
    pack(corpus(), Spec(tokenizer), 3, tmp_path)
    calls = tokenizer.calls
    again = pack(corpus(), Spec(tokenizer), 2, tmp_path)
    assert tokenizer.calls == calls
    assert isinstance(again.splits["train"], np.memmap) and again.splits["train"].shape == (4, 2)


@pytest.mark.parametrize("damage", ["cut", "altered", "gone", "record_cut", "record_gone"])
def test_damaged_cache_is_made_again(tmp_path, damage):
    first = {split: rows.tolist() for split, rows in pack(corpus(), Spec(Letters()), 3, tmp_path).splits.items()}
    (stream,) = tmp_path.glob("tokens-*-train.npy")
    (record,) = tmp_path.glob("tokens-*.json")
    whole = stream.read_bytes()
    match damage:
        case "cut":
            stream.write_bytes(whole[:-4])
        case "altered":
            stream.write_bytes(whole[:-2] + b"\x07\x00")
        case "gone":
            stream.unlink()
        case "record_cut":
            record.write_text(record.read_text()[:20])
        case "record_gone":
            record.unlink()
    second = pack(corpus(), Spec(Letters()), 3, tmp_path)
    assert {split: rows.tolist() for split, rows in second.splits.items()} == first
    assert stream.read_bytes() == whole
    assert json.loads(record.read_text())["train"]["sha256"] == file_digest(stream)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_spread_digest_sees_the_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_BLOCKS_HASHED", 3)
    path = tmp_path / "x"
    seen = set()
    for content in (b"a" * 40, b"b" + b"a" * 39, b"a" * 39 + b"b", b"a" * 41):
        path.write_bytes(content)
        seen.add(file_digest(path))
    assert len(seen) == 4


class Lossy(Letters):
    """What is no letter is left out."""

    loses = "signs_left_out"

    def lost(self, documents, encoded):
        return sum(d.count("-") for d in documents), sum(map(len, documents))


@pytest.mark.parametrize(("signs", "noted"), [(1, False), (3, True)])
def test_what_is_lost_is_a_fact_and_above_a_few_percent_a_note(tmp_path, signs, noted):
    found = dataclasses.replace(corpus(train=("abcdefghij" * 9, "-" * signs + "abc")), notes=("from the source",))
    for _ in range(2):  # encoded, then from the cache
        data = pack(found, Spec(Lossy()), 3, tmp_path)
        assert data.facts["signs_left_out_train"] == round(signs / (93 + signs), 4)
        assert data.facts["signs_left_out_test"] == 0
        assert data.notes[0] == "from the source" and len(data.notes) == 1 + noted
        assert not noted or "signs left out under letters-26-(25,): 3.1% of train, 0.0% of valid" in data.notes[1]


def test_text_that_is_mostly_lost_is_refused(tmp_path):
    tokenizer = Lossy()
    tokenizer.most_lost = 0.5
    pack(corpus(valid=("abcd----",)), Spec(tokenizer), 3, tmp_path)
    with pytest.raises(UserError, match="signs left out of the valid split are 56% of it.*tokenizer=bpe"):
        pack(corpus(valid=("abcd-----",)), Spec(tokenizer), 3, tmp_path)


@pytest.mark.parametrize(
    ("changes", "length", "words"),
    [
        ({}, 5, r"length=5 is longer than the valid split of data letters \(4 tokens\); use length <= 4"),
        ({}, 0, "length=0"),
        ({"valid": ()}, 3, "valid split has no documents"),
        ({"valid": ("---",)}, 3, "alphabet"),
    ],
)
def test_one_line_errors(tmp_path, changes, length, words):
    with pytest.raises(UserError, match=words) as caught:
        pack(corpus(**changes), Spec(Letters()), length, tmp_path)
    assert "\n" not in str(caught.value)


def test_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        pack(corpus(), Spec(Letters()), 3, tmp_path / "cache")


def test_held_out_shares():
    split = [held_out(f"name {number}", 0.2, 0.1) for number in range(20_000)]
    # Standard deviations are 0.0028 and 0.0021.
    assert split.count("valid") / 20_000 == pytest.approx(0.2, abs=0.012)
    assert split.count("test") / 20_000 == pytest.approx(0.1, abs=0.009)
    assert set(split) == set(SPLITS)


@pytest.mark.parametrize("spec", [Characters(CharactersOptions()), ByteBPE(ByteBPEOptions(vocab_size=300))])
def test_several_processes_write_the_bytes_of_one(tmp_path, monkeypatch, spec):
    """In batches of three documents, one of them without an id in the alphabet, so that there are more than are in flight."""
    monkeypatch.setattr(encode, "_DOCUMENTS_A_BATCH", 3)
    monkeypatch.setattr(encode, "_WORTH_PROCESSES", 2000)  # which two splits have not
    train = ["\u4e00" if i == 0 else f"document {i} of many, " * (1 + i % 7) for i in range(40)]
    alone = pack(corpus(train=train), spec, 3, tmp_path / "one")
    with encode.at_most(2):
        several = pack(corpus(train=train), spec, 3, tmp_path / "two")
    assert several.fingerprint == alone.fingerprint and several.facts == alone.facts
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) >= 4


def test_a_process_that_ends_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_WORTH_PROCESSES", 0)
    with (
        encode.at_most(2),
        pytest.raises(UserError, match="one of 2 processes that turn text into ids ended; use compute.w"),
    ):
        pack(corpus(), Spec(Deadly()), 3, tmp_path)
