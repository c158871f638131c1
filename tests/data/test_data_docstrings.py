"""The corpus of docstrings, on packages that are made here and never imported."""

import gzip
import json
import logging

import numpy as np
import pytest

from harness.data import docstrings
from harness.data.chars import Characters, CharactersOptions
from harness.data.docstrings import Docstrings, DocstringsOptions
from harness.data.extract import documents_of_file
from harness.errors import UserError

PACKAGE = "package_of_prose"
WORDS = "lamp table chair window door river bridge garden letter kettle mirror carpet ladder basket candle"
THINGS = WORDS.split()


def sentence(number: int) -> str:
    first, second = THINGS[number % len(THINGS)], THINGS[number // len(THINGS) % len(THINGS)]
    return f"Put the {first} on the {second} and wait for it."


@pytest.fixture
def package(tmp_path, monkeypatch):
    """120 files with a sentence each and boilerplate in all, and files that must not matter or must not break."""
    root = tmp_path / "site" / PACKAGE
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text(
        '"""This package must never be imported by the harness."""\nraise SystemExit(3)\n'
    )
    for number in range(120):
        body = (
            f'def f():\n    """{sentence(number)}\n\n    The boilerplate that is in every one of the files.\n    """\n'
        )
        (root / f"m{number:03d}.py").write_text(body)
    (root / "broken.py").write_text('"""The file that is not closed in any way.\n')
    (root / "latin.py").write_bytes(
        b'# -*- coding: latin-1 -*-\n"""The caf\xe9 is closed. \n\nThe house is open to all of us."""\n'
    )
    (root / "bad_bytes.py").write_bytes(b'"""The bytes \xff\xfe are not in any encoding."""\n')
    (root / "tests" / "t.py").write_text('"""The tests are not to be read by anyone."""\n')
    (root / "test_x.py").write_text('"""The tests are not to be read by anyone."""\n')
    monkeypatch.syspath_prepend(str(root.parent))
    return root


def options(**changes) -> DocstringsOptions:
    return DocstringsOptions(
        **({"packages": [PACKAGE], "valid_fraction": 0.2, "test_fraction": 0.2, "processes": 1} | changes)
    )


def corpus(tmp_path, **changes):
    return Docstrings(options(**changes)).corpus(tmp_path / "cache")


def test_reads_without_importing_and_splits_by_document(package, tmp_path):
    found = corpus(tmp_path)
    texts = {split: "\n".join(documents) for split, documents in found.documents.items()}
    everything = "\n".join(texts.values())
    assert all(sentence(number) in everything for number in range(120))
    for number in range(120):
        assert sum(sentence(number) in text for text in texts.values()) == 1
    assert everything.count("The boilerplate that is in every one of the files.") == 1
    assert "The house is open to all of us." in everything
    assert "not closed" not in everything and "tests are not" not in everything and "any encoding" not in everything
    assert 10 <= len(found.documents["valid"]) <= 40 and 10 <= len(found.documents["test"]) <= 40
    assert found.facts["packages"] == 1 and found.facts["packages_missing"] == 0


def test_split_of_a_file_does_not_move_when_others_come(package, tmp_path):
    before = corpus(tmp_path)
    (package / "new.py").write_text('"""The new file has a sentence that is its own."""\n')
    after = Docstrings(options()).corpus(tmp_path / "other")
    for split in before.documents:
        assert set(before.documents[split]) <= set(after.documents[split])
    assert before.fingerprint != after.fingerprint


def near_copies(package, pairs: int) -> list[tuple[str, str]]:
    """Files whose docstrings have a beginning of 40 symbols and more in common, two by two, and an end of their own."""
    rng, made = np.random.default_rng(0), []
    for number in range(pairs):
        a, b, c, d, e, f = rng.permutation(THINGS)[:6]
        same = f"It is the {a} of the {b} by a {c} in the {d}"
        made.append((f"{same} with an old {e}.", f"{same} or at {f}s."))
        for copy, text in enumerate(made[-1]):
            (package / f"copy{copy}_{number:03d}.py").write_text(f'"""{text}"""\n')
    return made


def test_documents_that_share_a_long_run_are_in_one_split(package, tmp_path):
    pairs = near_copies(package, 60)
    found = corpus(tmp_path)
    split_of = {text: split for split, documents in found.documents.items() for text in documents}
    assert all(split_of[one] == split_of[other] for one, other in pairs)
    assert {split_of[one] for one, _ in pairs} == {"train", "valid", "test"}
    assert len(split_of) / 2 < found.facts["groups"] <= len(split_of) - len(pairs)


def test_a_group_that_is_much_of_the_text_is_never_held_out(package, tmp_path):
    same = "These are the words that all of the many files in this package have in common"
    for number, thing in enumerate(THINGS):
        (package / f"many{number}.py").write_text(f'"""{same} but for the {thing} of the {number + 3} {thing}s."""\n')
    found = corpus(tmp_path)
    many = [text for text in found.documents["train"] if text.startswith(same)]
    assert len(many) == len(THINGS)
    share = sum(map(len, many)) / sum(len(text) for texts in found.documents.values() for text in texts)
    assert found.facts["never_held_out"] == pytest.approx(share, abs=1e-4)
    assert 10 <= len(found.documents["valid"]) <= 40 and 10 <= len(found.documents["test"]) <= 40
    with pytest.raises(UserError, match=r"only \d\d% of the text can be held out"):
        corpus(tmp_path, valid_fraction=0.45, test_fraction=0.45)


def test_second_run_reads_the_cache(package, tmp_path, monkeypatch):
    first = corpus(tmp_path)
    monkeypatch.setattr(docstrings, "_read", lambda *_: pytest.fail("read again"))
    second = corpus(tmp_path)
    assert second.documents == first.documents and second.fingerprint == first.fingerprint


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_damaged_cache_is_made_again(package, tmp_path, damage):
    first = corpus(tmp_path)
    (path,) = (tmp_path / "cache").glob("docstrings-*.jsonl.gz")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"lamp", b"damp")))
    second = corpus(tmp_path)
    assert second.documents == first.documents and second.fingerprint == first.fingerprint
    assert json.loads(gzip.decompress(path.read_bytes()).splitlines()[-1])["sha256"] == first.fingerprint


def test_worker_processes_find_the_same(package):
    paths = docstrings._files(package) * 2
    assert len(paths) >= 200
    assert docstrings._extract(paths, 2) == [documents_of_file(path) for path in paths]


def test_missing_packages_are_counted(package, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="harness.data.docstrings"):
        found = corpus(tmp_path, packages=[PACKAGE, "no_such_package_at_all"])
    assert found.facts["packages_missing"] == 1
    assert "1 of 2 packages are not installed" in caplog.text


def test_documentation_of_calls_and_nested_definitions(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        'add_docstr(f, r"""The sum of all the numbers that\nare given to it."""\n)\n'
        "if True:\n    class A:\n        async def g(self):\n"
        '            """The inner function of the class is here."""\n'
        'x = """The string that is only a value is not kept."""\n'
    )
    assert documents_of_file(path) == [
        ["The sum of all the numbers that are given to it."],
        ["The inner function of the class is here."],
    ]


def test_files_that_are_nearly_all_code_are_not_parsed(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('"""The only sentence that is in this file."""\n' + "x = 1\n" * 200)
    assert documents_of_file(path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packages": ["no_such_package_at_all"]}, "none of these packages is installed"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
    ],
)
def test_bad_options_are_one_line(package, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        corpus(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_loads_to_sequences(package, tmp_path):
    data = Docstrings(options()).load(16, tmp_path / "cache", Characters(CharactersOptions()))
    assert data.name == "docstrings" and data.vocab_size == 96
    assert all(array.shape[1] == 16 and len(array) for array in data.splits.values())
    assert "Put the " in "".join(data.decode(row) for row in data.splits["train"])
