"""What every data source and tokenizer under `studies/` owes the harness; a new YAML is tested here without a new line.

What would be downloaded is read from small files in the hub's layout, what would take long is made small.
"""

import dataclasses
import shutil

import numpy as np
import pytest

from harness.config.fields import default_of
from harness.config.registry import build_options, find_entries, locate, studies_folder
from harness.data.base import SPLITS, DataSource, TokenData
from harness.data.chars import Characters, CharactersOptions
from harness.data.tokenizers import Tokenizer, TokenizerSpec
from tests.data.test_data_hub import write
from tests.kit.hub_fixtures import byte_tokenizer

ENTRIES = find_entries([studies_folder()])
DATA, TOKENIZERS = ENTRIES["data"], ENTRIES["tokenizer"]
YAMLS = [*DATA.values(), *TOKENIZERS.values()]
#: What is not 64, in which a whole document of the files below has room, so that a row belongs to one split.
LENGTHS = {"binsaw": 16, "hmm": 4, "permutation": 6, "templates": 16}
#: Another value of each key that changes what is read or learnt.
OTHER = {
    "seed": 1, "train": 65, "heldout": 33, "levels": 4, "stay": 0.8, "purity": 0.9, "classes": 3, "accuracy": 0.5,
    "task_seed": 1, "test_fraction": 0.3, "max_documents": 90, "vocab_size": 270, "alphabet": "text8", "separator": "none",
}  # fmt: skip
TEXTS = [f"the {a} of the {b} and its {b}s" for a in ("lamp", "door", "hall") for b in ("sea", "land", "river")] * 20


@pytest.mark.parametrize("entry", YAMLS, ids=lambda e: f"{e.group}-{e.name}")
def test_the_yaml_says_what_it_is_and_only_what_is_new(entry):
    assert len(entry.about) > 20
    made = locate(entry.content["_target_"])
    assert issubclass(made, DataSource if entry.group == "data" else TokenizerSpec)
    default = {field.name: default_of(field) for field in dataclasses.fields(made.Options)}
    assert all(default[key] != value for key, value in entry.content.items() if key != "_target_")


def others(options) -> list[dict]:
    """Each key of `OTHER` that the options have, with a value that they do not have.

    On the hub `train` is the name of a split, and a published test split needs no fraction.
    """
    unread = {"train"} if "repo" in vars(options) else set()
    unread |= {"test_fraction"} if getattr(options, "test", None) else set()
    return [{key: OTHER[key]} for key in OTHER if key not in unread and getattr(options, key, OTHER[key]) != OTHER[key]]


# ---- data -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A text, and a repository as the hub has it, under both names of its folder."""
    root = tmp_path_factory.mktemp("files")
    (root / "lines.txt").write_text("\n".join(f"line number {k} of the text" for k in range(300)), encoding="utf-8")
    (root / "brown").mkdir()
    for k in range(40):
        words = " ".join(f"word/nn number/nn {k}/cd of/in line/nn {line}/cd ,/," for line in range(12))
        (root / "brown" / f"c{'abcd'[k % 4]}{k:02d}").write_text(f"\n\n\t{words}\n", encoding="ascii")
    write(root / "hub" / "data")
    shutil.copytree(root / "hub" / "data", root / "wikitext" / "wikitext-103-raw-v1")
    return root


class Source:
    """An entry of `studies/data`, small."""

    def __init__(self, name: str, files) -> None:
        self.name, self.content = name, dict(DATA[name].content)
        self.length = LENGTHS.get(name, 64)
        keys = {field.name for field in dataclasses.fields(locate(self.content["_target_"]).Options)}
        hub = files / ("wikitext" if name.startswith("wikitext") else "hub")
        small = {
            "path": str(files / ("brown" if name == "brown" else "lines.txt")), "local": str(hub),
            "packages": ["werkzeug"], "processes": 1,
            "train": 64, "heldout": 32, "valid_fraction": 0.2, "test_fraction": 0.2,
        }  # fmt: skip
        #: `train` is a number of rows for a task, and the name of a split on the hub.
        self.small = {key: small[key] for key in keys & set(small) if not (key == "train" and "repo" in keys)}

    def load(self, cache, length: int = 0, **more) -> TokenData:
        cls, options = build_options(self.content | self.small | more, "data")
        return cls(options).load(length or self.length, cache, Characters(CharactersOptions()))


@pytest.fixture(scope="module", params=sorted(DATA))
def source(request, files) -> Source:
    return Source(request.param, files)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(source, cache) -> TokenData:
    return source.load(cache)


def test_splits_hold_rows_of_the_length_with_ids_of_the_vocabulary(data, source):
    assert data.length == source.length and data.name and data.vocab_size > 1
    assert tuple(data.splits) == SPLITS
    for rows_NL in data.splits.values():
        assert rows_NL.ndim == 2 and rows_NL.shape[1] == data.length and len(rows_NL)
        assert np.issubdtype(rows_NL.dtype, np.integer)
        assert int(rows_NL.min()) >= 0 and int(rows_NL.max()) < data.vocab_size
    assert all(type(value) in (str, int, float) for value in data.facts.values())


def test_no_row_is_in_two_splits(data):
    """Of a known law the splits are independent draws, which may agree in single rows."""
    if data.task is not None:
        train, valid, test = (data.splits[split][:32] for split in SPLITS)
        assert not any(np.array_equal(a, b) for a, b in ((train, valid), (train, test), (valid, test)))
        return
    seen = [set(map(tuple, data.splits[split].tolist())) for split in SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_every_id_has_a_text_and_rows_that_differ_read_differently(data):
    row = data.splits["test"][0]
    assert data.decode(row.tolist()) == data.decode(row) != ""
    if data.name != "digits":
        assert len({data.decode([v]) for v in range(data.vocab_size)}) == data.vocab_size
    rows_NL = np.unique(data.splits["test"][:50], axis=0)
    assert len({data.decode(row.tolist()) for row in rows_NL}) == len(rows_NL)


def test_another_load_gives_the_same_with_its_cache_or_without(data, source, cache, tmp_path):
    for place in (cache, tmp_path):
        again = source.load(place)
        assert again.fingerprint == data.fingerprint
        assert all(np.array_equal(again.splits[split], data.splits[split]) for split in SPLITS)


def test_fingerprint_changes_with_every_option_and_the_length(data, source, cache):
    _, options = build_options(source.content | source.small, "data")
    loads = [source.load(cache, **other) for other in others(options)]
    if data.task is not None:
        assert not np.array_equal(source.load(cache, seed=1).splits["train"], data.splits["train"])
    if source.name != "digits":  # whose pictures have one size
        loads.append(source.load(cache, length=5))
    assert loads and len({data.fingerprint, *(load.fingerprint for load in loads)}) == 1 + len(loads)


# ---- tokenizers -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("hub") / "bytes"
    byte_tokenizer().save_pretrained(path)
    return str(path)


def built(name: str, cache, folder: str, **more) -> Tokenizer:
    content = dict(TOKENIZERS[name].content) | ({"name": folder} if name == "pretrained" else {}) | more
    cls, options = build_options(content, "tokenizer")
    return cls(options).build(TEXTS, cache, "key")


@pytest.fixture(params=sorted(TOKENIZERS))
def name(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(name, cache, folder) -> Tokenizer:
    return built(name, cache, folder)


def test_plain_text_comes_back_and_ids_are_of_the_vocabulary(tokenizer):
    documents = [*TEXTS[:3], "", "unseen words, even so", "a" * 300, "Caf\u00e9 \u201cnine\u201d \U0001f600\n\ttwo"]
    encoded = tokenizer.encode_batch(documents)
    assert len(encoded) == len(documents) and encoded[3].size == 0
    for text, ids in zip(documents, encoded, strict=True):
        assert ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
        assert not ids.size or (int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocab_size)
        assert np.array_equal(ids, tokenizer.encode_batch([text])[0]), "a document's ids are its own"
        once = tokenizer.decode(ids)
        assert text not in documents[:4] or once == text
        assert tokenizer.decode(tokenizer.encode_batch([once])[0]) == once


def test_every_id_and_the_separator_can_be_decoded(tokenizer):
    assert all(isinstance(tokenizer.decode([v]), str) for v in range(tokenizer.vocab_size))
    assert all(0 <= v < tokenizer.vocab_size for v in tokenizer.separator) and tokenizer.separator_bytes >= 0


def test_bytes_of_plain_text_are_counted(tokenizer):
    assert tokenizer.text_bytes(TEXTS, tokenizer.encode_batch(TEXTS)) == sum(map(len, TEXTS))


def test_identity_is_that_of_the_content_and_the_options(name, tokenizer, cache, tmp_path, folder):
    assert built(name, tmp_path, folder).identity == tokenizer.identity and folder not in tokenizer.identity
    _, options = build_options(TOKENIZERS[name].content, "tokenizer")
    changed = others(options) or [{"alphabet": "printable"}]
    identities = {built(name, cache, folder, **other).identity for other in changed}
    assert len(identities | {tokenizer.identity}) == 1 + len(changed)
