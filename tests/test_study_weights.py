"""Cells that differ only in how they sample: trained once, and only once, whatever the order; others keep their own."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.config.load import load
from harness.study.cells import data_cell, make_cells
from harness.study.session import Session
from harness.study.tasks import make_tasks
from tests.study_kit import command, invoke, use_threads, write_corpus

SAME = [
    f"methods.{name}.{key}={value}"
    for name in ("seq", "fast", "given")
    for key, value in {
        "slots": 4, "dims": 4, "prior_depth": 1, "one_call_share": 0.4, "prior_share": 0.2, "latent_batch": 32, "bank": 64
    }.items()
]  # fmt: skip
MORE = ["+method@methods.fast=seq_one_call", "+method@methods.given=seq_encoder", *SAME, "only=[seq,fast,given]"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("weights")
    corpus = write_corpus(root / "corpus.txt", 400)
    return command(corpus, root / "runs", root / "cache", "scale.steps=15", *MORE)


def test_three_entries_share_one_training(arguments, monkeypatch):
    use_threads(monkeypatch)
    said = invoke(arguments)
    assert said.code == 0, said.err
    session = Session(load(arguments).tree)
    cells = make_cells(session)
    assert (
        len({c.home for c in cells}) == 1 and len({c.folder for c in cells}) == 3 and len({c.key for c in cells}) == 3
    )
    assert len(list(session.folder.rglob("model.safetensors"))) == 1
    frame = pd.read_parquet(session.folder / "results.parquet").set_index(["method", "nfe"])
    assert frame.loc[("fast", 4), "nfe_latent"] == 1 and frame.loc[("given", 4), "nfe_latent"] == 0
    assert frame.loc["seq"]["nelbo_nats_per_token"].notna().all()
    assert frame.loc["fast"]["nelbo_nats_per_token"].isna().all()
    assert set(frame["role"]) == {"method", "probe", "data"}
    before = {p: p.stat().st_mtime_ns for p in session.folder.rglob("*.safetensors")}
    assert invoke([*arguments, "methods.seq.latent_share=0.25"]).code == 0
    after = {p: p.stat().st_mtime_ns for p in session.folder.rglob("*.safetensors")}
    assert all(after[p] == t for p, t in before.items()), "a new split of the budget must not train again"
    assert len(after) == len(before) + 2, "but draws its own samples"


def test_who_shares_weights_waits_for_who_trains_them(arguments):
    session = Session(load([*arguments, "study.name=waits"]).tree)
    cells = make_cells(session)
    tasks = make_tasks(session, cells, data_cell(session))
    needs = {c.method: tasks[("train", c.name)].needs for c in cells}
    owner = ("train", cells[0].name)
    assert needs == {cells[0].method: (), **{c.method: (owner,) for c in cells[1:]}}


def test_another_training_option_makes_other_weights(arguments):
    session = Session(load([*arguments, "methods.fast.decoder_noise=0.1"]).tree)
    homes = {c.method: c.home for c in make_cells(session)}
    assert homes["seq"] == homes["given"] != homes["fast"]
