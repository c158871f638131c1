"""Datasets in the hub's layout, read from small local parquet files; the hub itself is never reached."""

import logging
from types import SimpleNamespace

import huggingface_hub
import pandas as pd
import pytest

from harness.data.bpe import ByteBPE, ByteBPEOptions
from harness.data.chars import Characters, CharactersOptions
from harness.data.hub import Hub, HubOptions, _resolve
from harness.errors import UserError

SIZES = {"train": 200, "validation": 7, "test": 5}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def texts(split):
    return [f"{split} text number {number}" for number in range(SIZES[split])]


def write(folder, splits=("train", "validation", "test")):
    folder.mkdir(parents=True)
    for split in splits:
        rows = texts(split)
        parts = 2 if split == "train" else 1
        for part in range(parts):
            share = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            table = pd.DataFrame({"text": share, "number": range(len(share))})
            table.to_parquet(folder / f"{split}-{part:05d}-of-{parts:05d}.parquet")


@pytest.fixture
def local(tmp_path):
    write(tmp_path / "repo" / "data")
    return tmp_path / "repo"


def corpus(local, **options):
    return Hub(HubOptions(**({"repo": "someone/things", "local": str(local)} | options))).corpus()


def test_reads_the_hubs_layout_in_order(local):
    found = corpus(local, revision=COMMIT)
    assert found.documents == {"train": texts("train"), "valid": texts("validation"), "test": texts("test")}
    assert found.name == "things"
    assert found.facts["revision"] == "local" and found.facts["revision_pinned"] == "false"
    assert found.facts["held_out_of_train"] == "nothing"


def test_folder_of_a_configuration(tmp_path):
    write(tmp_path / "repo" / "big-v1")
    assert corpus(tmp_path / "repo", config="big-v1").documents["valid"] == texts("validation")
    with pytest.raises(UserError, match="data.config=big-v2 is not a folder .* did you mean 'big-v1'"):
        corpus(tmp_path / "repo", config="big-v2")


def test_splits_held_out_by_hash(tmp_path):
    write(tmp_path / "repo" / "data", ["train"])
    found = corpus(tmp_path / "repo", valid=None, test=None, valid_fraction=0.2, test_fraction=0.1)
    assert sorted(sum(map(list, found.documents.values()), [])) == sorted(texts("train"))
    assert 20 <= len(found.documents["valid"]) <= 60 and 5 <= len(found.documents["test"]) <= 40
    assert found.facts["held_out_of_train"] == "valid, test"
    part = corpus(tmp_path / "repo", valid=None, test=None, valid_fraction=0.2, test_fraction=0.1, max_documents=150)
    for split in ("train", "valid", "test"):
        assert set(part.documents[split]) <= set(found.documents[split])


def test_published_split_is_used_where_it_exists(local):
    found = corpus(local, test=None, test_fraction=0.2)
    assert found.documents["valid"] == texts("validation")
    assert set(found.documents["test"]) <= set(texts("train"))


def test_join_and_limit(local):
    assert corpus(local, join="").documents["test"] == ["".join(texts("test"))]
    limited = corpus(local, max_documents=3)
    assert limited.documents["train"] == texts("train")[:3] and limited.facts["max_documents"] == 3


def test_fingerprint_names_the_repository_and_the_content(local):
    base = corpus(local).fingerprint
    assert corpus(local).fingerprint == base
    assert len({base, corpus(local, repo="someone/else").fingerprint, corpus(local, max_documents=3).fingerprint}) == 3


def test_loads_to_sequences(local, tmp_path):
    source = Hub(HubOptions(repo="someone/things", local=str(local)))
    data = source.load(20, tmp_path / "cache", Characters(CharactersOptions()))
    assert data.decode(data.splits["valid"].ravel()).startswith("validation text number 0\nvalidation")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"field": "txt"}, "data.field=txt is not a column .* did you mean 'text'"),
        ({"field": "number"}, "holds int, not text"),
        ({"valid": "valid"}, "valid split cannot be read"),
        ({"valid": None, "test": None, "valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"test": None, "join": ""}, "data.join"),
        ({"repo": "???"}, "data.repo is empty"),
        ({"test": None, "max_documents": 1}, "the test split has no text"),
    ],
)
def test_one_line_errors(local, options, words):
    with pytest.raises(UserError, match=words) as caught:
        corpus(local, **options)
    assert "\n" not in str(caught.value)


def test_missing_folder_names_the_nearest(local):
    with pytest.raises(UserError, match="is not a folder; did you mean 'repo'"):
        corpus(local.parent / "rep")


def test_damaged_parquet(local):
    (local / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="the test split cannot be read") as caught:
        corpus(local)
    assert "\n" not in str(caught.value)


class FakeHub:
    """Stands for `HfApi`: knows one commit, or fails as without a network."""

    error: Exception | None = None

    def dataset_info(self, repo, revision=None, timeout=None):
        if self.error is not None:
            raise self.error
        return SimpleNamespace(sha=COMMIT)


def test_newest_revision_is_recorded_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    with caplog.at_level(logging.WARNING, logger="harness.data.hub"):
        assert _resolve(HubOptions(repo="someone/things")) == COMMIT
    assert "is not pinned" in caplog.text and COMMIT in caplog.text
    caplog.clear()
    assert _resolve(HubOptions(repo="someone/things", revision=COMMIT)) == COMMIT
    assert caplog.text == ""


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_no_network_is_one_line_at_once(monkeypatch, revision):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(FakeHub, "error", ConnectionError("no route\nsecond line"))
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    with pytest.raises(UserError) as caught:
        Hub(HubOptions(repo="someone/things", revision=revision)).corpus()
    message = str(caught.value)
    assert "data.repo=someone/things" in message and "no route" in message and "\n" not in message
    assert "data=text data.path=" in message and "data.local=" in message


def test_revision_is_part_of_the_fingerprint(local, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(Hub, "_rows", lambda self, name, revision: iter(texts(name)))
    first = Hub(HubOptions(repo="someone/things")).corpus()
    monkeypatch.setattr("tests.data.test_data_hub.COMMIT", COMMIT[::-1])
    second = Hub(HubOptions(repo="someone/things")).corpus()
    assert first.documents == second.documents and first.fingerprint != second.fingerprint
    assert first.facts["revision"] == "0123456789abcdef0123456789abcdef01234567"


def test_a_second_process_reads_nothing_until_the_text_or_the_options_change(local, tmp_path, monkeypatch):
    reads, cache = [], tmp_path / "cache"
    rows = Hub._rows

    def counted(self, name, revision):
        reads.append(name)
        return rows(self, name, revision)

    monkeypatch.setattr(Hub, "_rows", counted)

    def load(spec=None, **options):
        reads.clear()
        source = Hub(HubOptions(**({"repo": "someone/things", "local": str(local)} | options)))
        return source.load(8, cache, spec or ByteBPE(ByteBPEOptions(vocab_size=260)))

    first = load()
    assert len(reads) == 3
    again = load()
    assert not reads and (again.fingerprint, dict(again.facts)) == (first.fingerprint, dict(first.facts))
    assert all((again.splits[split] == first.splits[split]).all() for split in first.splits)
    assert again.decode(again.splits["valid"][0].tolist()) == first.decode(first.splits["valid"][0].tolist())
    load(max_documents=100)
    assert reads, "other options"
    load(Characters(CharactersOptions()))
    assert reads, "another tokenizer"
    for path in cache.glob("tokens-*-valid.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    assert (load().splits["valid"] == first.splits["valid"]).all() and reads, "a damaged stream is made again"
    for path in cache.glob("bpe-*.json"):
        path.unlink()
    assert load().fingerprint == first.fingerprint and reads, "what the tokenizer learnt is gone"
    file = next((local / "data").glob("validation-*"))
    pd.DataFrame({"text": ["another text entirely, of some length"] * 9}).to_parquet(file)
    assert load().fingerprint != first.fingerprint and reads, "the files changed"
