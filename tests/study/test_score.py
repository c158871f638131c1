"""Anybody's samples under a study's protocol (`harness.score`), and its models for use (`harness.sample`, `harness.load`)."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import harness
from harness import sample, score
from harness.data.base import TokenData
from harness.data.chars import Characters, CharactersOptions
from harness.errors import UserError
from harness.store import ResultsTable
from harness.study.given import read_lines
from tests.kit.study_kit import Said

TOKENS = Characters(CharactersOptions("text8")).build([], Path(), "")
DATA = TokenData("toy", 27, 4, {}, "toy", TOKENS.decode, {"tokenizer": TOKENS.identity}, encode=TOKENS.encode_batch)


def said(main, *words: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return Said(code, out.getvalue(), err.getvalue())


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


# ---- lines ----------------------------------------------------------------------------------------------------------
def test_ids_and_texts_are_read_in_their_order(tmp_path):
    path = write(tmp_path / "a.jsonl", {"ids": [0, 1, 2, 3]}, {"text": "dcba"}, {"text": "abcd", "ids": [0, 1, 2, 3]})
    lines = read_lines(path, DATA)
    assert lines.x_NL.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]] and not lines.unfit
    assert lines.notes == (f"{path}: 1 lines without ids; their entropy is over the tokens of {TOKENS.identity}",)
    assert read_lines(write(tmp_path / "a.txt", "abcd", "dcba"), DATA).x_NL.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


BAD = [
    ("{", "is not JSON"),
    ("", "is empty"),
    ([1], "has neither text nor ids"),
    ({"txt": "abcd"}, "has neither text nor ids"),
    ({"text": 3}, "has a text that is none"),
    ({"text": " "}, "has an empty text"),
    ({"text": "abc"}, "has 3 tokens, and a sample has 4"),
    ({"text": "abcde"}, "has 5 tokens, and a sample has 4"),
    ({"ids": [0, 1, 2]}, "has 3 tokens"),
    ({"ids": [0, 1, 2, 27]}, "has ids that are not whole numbers from 0 to 26"),
    ({"ids": [0, 1, 2, 1.0]}, "has ids that are not whole numbers"),
    ({"ids": [0, 1, 2, True]}, "has ids that are not whole numbers"),
    ({"ids": "abcd"}, "has ids that are not whole numbers"),
    ({"text": "abcd", "ids": [3, 2, 1, 0]}, "has ids that are not those of its text under this tokenizer"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[str(line) for line, _ in BAD])
def test_a_bad_line_is_named_with_its_reason(tmp_path, line, reason):
    lines = read_lines(write(tmp_path / "a.jsonl", {"text": "abcd"}, line, {"text": "abcd"}), DATA)
    assert len(lines.x_NL) == 2 and [number for number, _ in lines.unfit] == [2]
    assert reason in lines.told(tmp_path / "a.jsonl") and "1 of 3 lines cannot be scored: line 2" in lines.told(
        Path("a")
    )


def test_what_the_tokenizer_changes_and_what_is_cut_is_said(tmp_path):
    path = write(tmp_path / "a.txt", "abcd", "ABcd", "abcdef")
    lines = read_lines(path, DATA, cut=True)
    assert lines.x_NL.tolist() == [[0, 1, 2, 3]] * 3
    assert "1 texts are not what the tokenizer gives back (the first: line 2)" in lines.notes[1]
    assert "1 texts are cut after 4 tokens" in lines.notes[2]


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"ab\xff")
    for path, reason in (
        (tmp_path / "absent.jsonl", "cannot be read"),
        (write(tmp_path / "empty.jsonl"), "is empty"),
        (write(tmp_path / "a.csv", "abcd"), "unknown ending"),
        (tmp_path / "bytes.txt", "is no UTF-8"),
    ):
        with pytest.raises(UserError, match=reason):
            read_lines(path, DATA)


# ---- a study's own samples ------------------------------------------------------------------------------------------
def words_of(finished, runs: Path) -> list[str]:
    kept = [word for word in finished.arguments if not word.startswith(("runs_dir=", "tracking."))]
    return [*kept, f"runs_dir={runs}", "tracking.enabled=false"]


def rows_of(folder: Path) -> dict[tuple, dict]:
    frame = ResultsTable.read(folder / "results.parquet")
    numbers = ["protocol", *(c for c in frame if c.startswith(("gen_ppl", "entropy", "mauve")))]
    return {(r["method"], r["sampler"], r["nfe"]): {c: r[c] for c in numbers} for r in frame.to_dict("records")}


def test_a_studys_samples_get_that_studys_numbers_to_the_bit(finished, threads, tmp_path):
    samples = finished.folder / "samples" / "mdlm-ancestral-seed0-nfe0004-T1.jsonl"
    texts = [json.loads(line)["text"] for line in samples.read_text().splitlines()]
    plain = write(tmp_path / "plain.jsonl", *({"text": text} for text in texts))
    done = said(score.main, f"samples=[{samples},{plain}]", *words_of(finished, tmp_path))
    assert done.code == 0, done.err
    mine, theirs = rows_of(tmp_path / "scored"), rows_of(finished.folder)
    name = samples.stem.replace(".", "-")
    own = {key[0]: row for key, row in mine.items()}
    assert {key[0]: key[2] for key in mine if key[0] != "data"} == {name: 4, "plain": 0}  # by the file's name
    assert own[name] == theirs["mdlm", "ancestral", 4] and own["plain"] == own[name]
    assert "plain.jsonl: 24 lines without ids; their entropy is over the tokens of characters" in done.err
    assert [row for key, row in mine.items() if key[0] == "data"] == [
        row for k, row in theirs.items() if k[0] == "data"
    ]
    assert (tmp_path / "scored" / "report.html").exists() and f"{name[:15]}" in done.out


def test_calls_are_those_of_the_arguments():
    for word, expected in (("nfe=[2,8]", [2, 8]), ("nfe=4", [4, 4]), ("bad=skip", [None, None])):
        assert score._split(["samples=[a.txt,b.txt]", word, "study=smoke"])[0]["nfe"] == expected


def test_what_cannot_be_compared_is_refused_in_one_line(finished, tmp_path):
    words = words_of(finished, tmp_path)
    good = json.loads((finished.folder / "samples" / "data-nfe0000-T1.jsonl").read_text().splitlines()[0])
    a, b = write(tmp_path / "a.jsonl", *[good] * 10), write(tmp_path / "b.jsonl", *[good] * 9, "{")
    for arguments, reason in (
        ([f"samples=[{a},{b}]"], "b.jsonl: 1 of 10 lines cannot be scored: line 10 is not JSON"),
        ([f"samples=[{a},{b}]", "bad=skip"], "a has 10, b has 9; files are compared at the same number"),
        ([f"samples=[{a},{a}]"], "another file is called a too"),
        ([f"samples={a}", "study.samples=24"], "study.samples=24: the files have 10 samples; use study.samples=10"),
        ([f"samples={a}", "bad=ignore"], "bad=ignore: is none of refuse, skip"),
        ([f"samples=[{a},{b}]", "nfe=[4]"], "nfe=[4]: give a whole number above 0, or a list of 2, one for each file"),
        ([f"samples={a}", "nfe=none"], "nfe=none: give a whole number above 0"),
        ([], "samples= names no file"),
        ([f"samples={write(tmp_path / 'c.jsonl', '{')}", "bad=skip"], "nothing is left"),
    ):
        rest = [word for word in words if not word.startswith("study.samples")]
        done = said(score.main, *arguments, *rest)
        assert done.code == 2 and reason in done.error and "Traceback" not in done.err, (arguments, done.err)


# ---- a study's models -----------------------------------------------------------------------------------------------
def test_a_model_that_is_loaded_draws_what_the_study_drew(finished, tmp_path):
    kept = (finished.folder / "samples" / "mdlm-ancestral-seed0-nfe0004-T1.jsonl").read_text()
    model = harness.load(finished.folder, "mdlm")
    assert model.draw(24, 4) == [json.loads(line)["text"] for line in kept.splitlines()]
    assert model.draw(24, 4, seed=5) != model.draw(24, 4)
    ids_NL = model.draw_ids(3, 2)
    bound_N = model.bound(ids_NL)
    assert bound_N.shape == (3,) and np.isfinite(bound_N).all()
    scores = model.judge(model.draw(3, 2))
    assert len(scores.nll_N) == 3 and (scores.nll_N > 0).all()
    done = said(sample.main, f"run={finished.folder}", "method=mdlm/ancestral", "nfe=4", "n=24")
    assert done.code == 0 and done.out == kept
    done = said(sample.main, f"run={finished.folder}", "method=unigram", "nfe=0", "n=2", f"to={tmp_path / 's.jsonl'}")
    assert done.code == 0 and len((tmp_path / "s.jsonl").read_text().splitlines()) == 2


def test_what_cannot_be_drawn_is_refused_in_one_line(finished):
    for words, reason in (
        (["method=mdlm", "nfe=4"], "run= is missing"),
        ([f"run={finished.folder.parent}", "method=mdlm", "nfe=4"], "there is no config.yaml"),
        ([f"run={finished.folder}", "method=mlm", "nfe=4"], "did you mean 'mdlm'?"),
        ([f"run={finished.folder}", "method=mdlm", "nfe=0"], "nfe=0 cannot be met by MDLM"),
        ([f"run={finished.folder}", "method=mdlm", "nfe=four"], "nfe=four: is not a whole number"),
        ([f"run={finished.folder}", "method=mdlm", "nfe=4", "n=0"], "n=0: draw 1 or more"),
        ([f"run={finished.folder}", "method=mdlm", "nfe=4", "of=7"], "mdlm has the seeds 0"),
        ([f"run={finished.folder}", "method=mdlm", "nfe=4", "temperature=0"], "must be above 0"),
        ([f"run={finished.folder}", "method=mdlm", "nfe=4", "temprature=1"], "did you mean 'temperature'?"),
    ):
        done = said(sample.main, *words)
        assert done.code == 2 and reason in done.error, (words, done.err)
