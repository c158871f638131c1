"""Tokenizers: round trips, known ids, one answer however text is cut, and one line for what cannot be loaded."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from harness.data import bpe
from harness.data.bpe import ByteBPE, ByteBPEOptions
from harness.data.chars import Characters, CharactersOptions
from harness.data.pretrained import Pretrained, PretrainedOptions
from harness.errors import UserError

TEXTS = [
    f"The {a} of the {b}, and it's {a}ing: \u201c{b}s\u201d!" for a in ("lamp", "door", "hall") for b in ("sea", "land")
]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return ByteBPE(ByteBPEOptions(vocab_size=280)).build(TEXTS * 20, tmp_path_factory.mktemp("bpe"), "key")


# ---- characters ------------------------------------------------------------------------------------------------------
def characters(alphabet):
    return Characters(CharactersOptions(alphabet)).build([], None, "")


def through(alphabet, text):
    tokenizer = characters(alphabet)
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.text_bytes([text], [ids]) == len(ids)
    return tokenizer.decode(ids)


def test_text8_ids_are_a_to_z_and_space():
    tokenizer = characters("text8")
    assert tokenizer.vocab_size == 27 and tokenizer.separator == (26,)
    (ids,) = tokenizer.encode_batch(["az b"])
    assert ids.tolist() == [0, 25, 26, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" anarchism originated as a term ", " anarchism originated as a term "),  # text8's own form: unchanged
        ("Caf\u00e9 No. 42!", "cafe no four two"),
        ("well\u2014known\nlines", "well known lines"),
        ("in1999", "in one nine nine nine"),
        ("\U0001f600 smile", "smile"),
        ("", ""),
    ],
)
def test_text8_form(text, expected):
    assert through("text8", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain (text), 100%\n~", "Plain (text), 100%\n~"),
        ("\u201cDon\u2019t\u201d \u2014 she\u2026", '"Don\'t" -- she...'),
        ("na\u00efve e\u0301\u00a0\u00e6on", "naive e aeon"),
        ("a\tb\x00c\u03a9\U0001f600d", "a bcd"),
    ],
)
def test_printable_form(text, expected):
    assert through("printable", text) == expected


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_is_encoded_within_the_alphabet_and_stable(text):
    for alphabet in ("text8", "printable"):
        once = through(alphabet, text)
        assert through(alphabet, once) == once
        assert "  " not in once or alphabet == "printable"


# ---- byte-level BPE --------------------------------------------------------------------------------------------------
def test_bpe_round_trip_of_seen_and_unseen_text(learnt):
    for text in [*TEXTS, "Unseen \U0001f600 text\n\n  with\ttabs 123"]:
        (ids,) = learnt.encode_batch([text])
        assert learnt.decode(ids) == text
        assert ids.max() < learnt.vocab_size
    assert learnt.vocab_size == 280
    assert learnt.decode(learnt.separator) == "\n"
    assert len(learnt.encode_batch([TEXTS[0]])[0]) < len(TEXTS[0].encode())


@given(st.text(alphabet="ab Z,.'\n\u00e9\u2009 9-", max_size=40))
@settings(deadline=None, max_examples=300)
def test_bpe_in_pieces_is_bpe_of_the_whole(learnt, text):
    (ids,) = learnt.encode_batch([text])
    assert ids.tolist() == learnt._learnt.encode(text).ids


def test_bpe_of_long_documents_is_bpe_of_the_whole(learnt, monkeypatch):
    monkeypatch.setattr(bpe, "_LONGEST_PART", 50)
    monkeypatch.setattr(bpe, "_BATCH_CHARACTERS", 70)
    monkeypatch.setattr(bpe, "_KNOWN_CHARACTERS", 30)
    documents = [" ".join(TEXTS), "", "x" * 200, "\n".join(TEXTS)]
    for document, ids in zip(documents, learnt.encode_batch(documents), strict=True):
        assert ids.tolist() == learnt._learnt.encode(document).ids


def test_bpe_is_learnt_alike_and_cached(tmp_path, monkeypatch, learnt):
    build = ByteBPE(ByteBPEOptions(vocab_size=280)).build
    first = build(TEXTS * 20, tmp_path, "key")
    assert first.identity == learnt.identity
    monkeypatch.setattr(bpe, "learn_bpe", lambda *_: pytest.fail("learnt again"))
    assert build(TEXTS * 20, tmp_path, "key").identity == first.identity


def test_bpe_cache_is_by_corpus_and_size(tmp_path):
    identities = {
        ByteBPE(ByteBPEOptions(vocab_size=size)).build(texts, tmp_path, key).identity
        for size, texts, key in [
            (280, TEXTS * 20, "a"),
            (270, TEXTS * 20, "a"),
            (280, ["other words are here"] * 50, "b"),
        ]
    }
    assert len(identities) == 3


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": "1.0"}', b"\xff\xfe"])
def test_damaged_bpe_is_learnt_again(tmp_path, content, learnt):
    build = ByteBPE(ByteBPEOptions(vocab_size=280)).build
    build(TEXTS * 20, tmp_path, "key")
    (path,) = tmp_path.glob("bpe-*.json")
    path.write_bytes(content)
    assert build(TEXTS * 20, tmp_path, "key").identity == learnt.identity
    assert json.loads(path.read_bytes())


def test_bpe_learns_from_a_spread_sample():
    documents = [f"{number:04d} " * 20 for number in range(1000)]  # 100 bytes each
    sample = list(bpe._sample(documents, 10_000))
    assert len(sample) == 100
    assert sample[0].startswith("0000") and sample[-1].startswith("0990")


def test_bpe_of_little_text_has_fewer_tokens(tmp_path):
    tokenizer = ByteBPE(ByteBPEOptions(vocab_size=5000)).build(["abc abc"], tmp_path, "key")
    assert 256 <= tokenizer.vocab_size < 300


# ---- what characters leave out ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "text8", "printable"),
    [
        ("Plain (ASCII) text, $5 + 10 %.", (0, 24), (0, 24)),
        ("Caf\u00e9 \u201cno. 1\u201d \u2014 na\u00efve", (0, 17), (0, 17)),  # folded; the dash becomes two
        ("Cafe\u0301", (0, 5), (0, 5)),  # an accent alone
        ("\u043c\u0438\u0440 42", (3, 5), (3, 5)),  # Cyrillic
        ("\u65e5\u672c ok \U0001f600 \u20ac", (4, 6), (4, 6)),
    ],
)
def test_what_has_no_symbol_is_counted(text, text8, printable):
    for alphabet, expected in (("text8", text8), ("printable", printable)):
        tokenizer = characters(alphabet)
        assert tokenizer.lost([text, ""], tokenizer.encode_batch([text, ""])) == expected


@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", "\u1680", "\u2003", "\u205f", "\u3000", "\x1f"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\v", "\f", "\x1e", "\x85", "\u2028", "\u2029"])
def test_what_separates_words_stays_a_separator(space, end):
    assert through("printable", f"one{space}two{end}three") == "one two\nthree"
    assert through("text8", f"one{space}two{end}three") == "one two three"


# ---- pretrained ------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """A tokenizer of whole words in the layout of a published one."""
    words = {"<unk>": 0, "<|end|>": 1, "the": 2, "lamp": 3, "door": 4}
    whole = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    root = tmp_path / "words"
    root.mkdir()
    whole.save(str(root / "tokenizer.json"))
    settings_of = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "unk_token": "<unk>"}
    (root / "tokenizer_config.json").write_text(json.dumps(settings_of))
    return root


def test_pretrained_from_a_folder(folder):
    tokenizer = Pretrained(PretrainedOptions(str(folder))).build([], folder, "")
    first, second = tokenizer.encode_batch(["the lamp", "the door lamp sofa"])
    assert first.tolist() == [2, 3] and second.tolist() == [2, 4, 3, 0]
    assert np.issubdtype(first.dtype, np.integer)
    assert tokenizer.vocab_size == 5 and tokenizer.separator == (1,) and tokenizer.separator_bytes == 0
    assert "lamp" in tokenizer.decode([2, 3])


def test_pretrained_vocabulary_reaches_to_the_largest_id(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["door"] = 9
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Pretrained(PretrainedOptions(str(folder))).build([], folder, "")
    assert tokenizer.vocab_size == 10 and tokenizer.encode_batch(["the door"])[0].tolist() == [2, 9]
    assert all(isinstance(tokenizer.decode([v]), str) for v in range(10))


def test_pretrained_counts_unknown_tokens_if_it_has_any(folder):
    documents = ["the lamp", "the sofa and the door"]
    tokenizer = Pretrained(PretrainedOptions(str(folder))).build([], folder, "")
    assert tokenizer.loses == "unknown_tokens"
    assert tokenizer.lost(documents, tokenizer.encode_batch(documents)) == (2, 7)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    assert Pretrained(PretrainedOptions(str(folder))).build([], folder, "").loses == ""


def test_pretrained_identity_follows_the_content(folder):
    def identity(**options):
        return Pretrained(PretrainedOptions(str(folder), **options)).build([], folder, "").identity

    before = identity()
    assert identity() == before and identity(separator="none") != before
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lamp"', '"lump"'))
    assert identity() != before


def test_pretrained_errors_are_one_line(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cases = [
        (PretrainedOptions(str(folder.parent / "word")), "no such folder; did you mean 'words'"),
        (PretrainedOptions(str(folder / "tokenizer.json")), "is a file"),
        (PretrainedOptions(str(folder.parent)), "no tokenizer files"),
        (PretrainedOptions("someone/nothing-here"), "neither a folder nor cached"),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            Pretrained(options).build([], folder, "")
        assert "\n" not in str(caught.value)


def test_pretrained_damaged_or_without_end_of_text(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(UserError, match="no end-of-text token; use tokenizer.separator=newline"):
        Pretrained(PretrainedOptions(str(folder))).build([], folder, "")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        Pretrained(PretrainedOptions(str(folder))).build([], folder, "")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_comes_back_from_what_a_model_keeps(learnt, folder):
    texts = ["the cat, again", "A  Wholly new\nwörd", ""]
    pretrained = Pretrained(PretrainedOptions(str(folder), separator="none"))
    for spec, built in (
        (ByteBPE(ByteBPEOptions()), learnt),
        (pretrained, pretrained.build([], folder, "")),
        (Characters(CharactersOptions("text8")), characters("text8")),
    ):
        again = spec.restore(built.to_text())
        assert again.identity == built.identity and again.vocab_size == built.vocab_size
        for ids, own in zip(built.encode_batch(texts), again.encode_batch(texts), strict=True):
            assert ids.tolist() == own.tolist() and built.decode(ids.tolist()) == again.decode(own.tolist())
