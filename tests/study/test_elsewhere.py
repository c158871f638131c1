"""Bounds on other corpora: on the study's own test split it is the study's own; what cannot be written is refused."""

from types import SimpleNamespace

import pytest
import yaml

from harness import bound
from harness.config.load import load
from harness.report.elsewhere import elsewhere_section
from harness.report.table import measured
from harness.store import read_json, write_text
from harness.study.cells import make_cells
from harness.study.elsewhere import rows_elsewhere
from harness.study.model import session_of
from harness.study.session import Session
from harness.study.steps import measure_cell, train_cell
from tests.kit.study_kit import command, write_corpus
from tests.study.test_score import said


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SimpleNamespace:
    """What a study leaves behind of two methods: its configuration, weights and bounds. No judge is trained."""
    root = tmp_path_factory.mktemp("elsewhere")
    corpus = write_corpus(root / "words.txt")
    more = ("only=[bigram,mdlm]", "scale.steps=8", "train.validations=1")
    tree = load(command(corpus, root / "runs", root / "cache", *more)).tree
    session = Session(tree)
    for cell in make_cells(session):
        train_cell(session, cell, lambda text, done, total: None)
        measure_cell(session, cell, lambda text, done, total: None)
    write_text(session.folder / "config.yaml", yaml.safe_dump(tree))
    return SimpleNamespace(corpus=corpus, folder=session.folder)


def test_on_its_own_test_split_a_method_has_its_own_bound(study):
    done = said(
        bound.main,
        f"run={study.folder}",
        "data=text",
        f"data.path={study.corpus}",
    )
    assert done.code == 0, done.err
    rows = read_json(study.folder / "elsewhere.json")
    assert {row["cell"] for row in rows.values()} == {"bigram/counts", "mdlm/ancestral"}
    decode, test = (session := session_of(study.folder)).data.decode, session.data.some("test", 24)
    per_token = sum(len(decode(row)) for row in test.tolist()) / test.size
    for row in rows.values():
        assert row["nats_per_token"] == row["own_nats_per_token"], "to the bit"
        assert row["nats_per_character"] == pytest.approx(row["nats_per_token"] / per_token)
        assert measured(row["nats_per_token"], row["nats_per_token_se"]) in done.out


def test_other_text_is_less_likely_and_rows_are_added(study, tmp_path):
    path = tmp_path / "jumbled.txt"
    path.write_text("\n".join("zq xj kv qz jx vk" * 4 for _ in range(400)) + "\n", encoding="utf-8")
    done = said(bound.main, f"run={study.folder}", "data=text", f"data.path={path}", "only=bigram")
    assert done.code == 0 and "| jumbled " in done.out, done.err
    row = next(r for r in read_json(study.folder / "elsewhere.json").values() if r["data"] == "jumbled")
    assert row["nats_per_token"] > row["own_nats_per_token"] + 1.0
    session = session_of(study.folder)
    cells = make_cells(session)
    assert row in rows_elsewhere(session, cells) and "jumbled" in elsewhere_section([row])
    others = [cell for cell in cells if cell.method != "bigram"]
    assert row not in rows_elsewhere(session, others), "of cells that are not there any more"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["data=binsaw"], "is no text that"),
        (["data=text", "data.path={other}"], "of it; choose another text"),
        (["data=text", "data.path={other}", "only=mdml"], "only=mdml: is not in"),
        (["data.path={other}"], "data= names no corpus"),
        (["data=text", "data.path={other}", "seed=3"], "seed=3: write KEY=VALUE"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(study, tmp_path, words, answer):
    other = tmp_path / "other.txt"
    other.write_text("\n".join("привет мир ok " * 9 for _ in range(400)), encoding="utf-8")
    done = said(bound.main, f"run={study.folder}", *(word.format(other=other) for word in words))
    assert (done.code, done.out) == (2, "") and answer in done.err, done.err
    assert done.err.count("\n") == 1
