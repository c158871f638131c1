"""Cells that differ only in how they sample: trained once, and only once, whatever the order; others keep their own."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.config.load import load
from harness.study.cells import config_key, data_cell, make_cells
from harness.study.session import Session
from harness.study.tasks import make_tasks
from tests.kit.hub_fixtures import altered, save, tiny_gpt2
from tests.kit.study_kit import command, invoke, use_threads, write_corpus

MORE = [
    *(f"methods.seq.{key}={value}" for key, value in {
        "slots": 4, "dims": 4, "prior_depth": 1, "one_call_share": 0.4, "prior_share": 0.2, "latent_batch": 32, "bank": 64
    }.items()),
    "methods.seq.samplers.one_call={}",
    "methods.seq.samplers.encoder={}",
    "methods.seq.samplers.ddim={sampler: diffusion, eta: 0.0}",
    "only=[seq/diffusion,seq/one_call,seq/encoder]",
]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("weights")
    corpus = write_corpus(root / "corpus.txt", 400)
    return command(corpus, root / "runs", root / "cache", "scale.steps=15", *MORE)


def test_samplers_share_one_training(arguments, monkeypatch):
    use_threads(monkeypatch)
    said = invoke(arguments)
    assert said.code == 0, said.err
    session = Session(load(arguments).tree)
    cells = make_cells(session)
    assert (
        len({c.weights for c in cells}) == 1
        and len({c.folder for c in cells}) == 3
        and len({c.key for c in cells}) == 3
    )
    assert len(list(session.folder.rglob("model.safetensors"))) == 1
    frame = pd.read_parquet(session.folder / "results.parquet").set_index(["sampler", "nfe"])
    assert frame.loc[("one_call", 4), "nfe_latent"] == 1 and frame.loc[("encoder", 4), "nfe_latent"] == 0
    assert frame.loc["diffusion"]["nelbo_nats_per_token"].notna().all()
    assert frame.loc["one_call"]["nelbo_nats_per_token"].isna().all()
    assert set(frame["role"]) == {"method", "probe", "data"}
    before = {p: p.stat().st_mtime_ns for p in session.folder.rglob("*.safetensors")}
    assert invoke([*arguments, "methods.seq.samplers.diffusion.latent_share=0.25", "only=[seq]"]).code == 0
    after = {p: p.stat().st_mtime_ns for p in session.folder.rglob("*.safetensors")}
    assert all(after[p] == t for p, t in before.items()), "a new sampler must not train again"
    assert len(after) == len(before) + 4, "two budgets of the new split, and two of the sampler that was added"


def test_weights_are_trained_by_one_task_that_all_samplers_wait_for(arguments):
    session = Session(load([*arguments, "study.name=waits"]).tree)
    cells = make_cells(session)
    tasks = make_tasks(session, cells, data_cell(session))
    assert [key for key in tasks if key[0] == "train"] == [("train", "seq/seed0")]
    assert {tasks[("sample", c.name)].needs for c in cells} == {(("train", "seq/seed0"),)}


def test_an_override_of_the_method_reaches_all_of_its_samplers(arguments):
    first, other = (
        {c.sampler: c for c in make_cells(Session(load([*arguments, *more]).tree))}
        for more in ((), ("methods.seq.decoder_noise=0.1",))
    )
    assert len({c.weights for c in other.values()}) == 1
    assert not {c.key for c in first.values()} & {c.key for c in other.values()}


def test_the_same_options_under_two_names_train_once(arguments):
    more = ["+method@methods.twin=mdlm", "only=[mdlm,twin]"]
    cells = make_cells(Session(load([*(a for a in arguments if not a.startswith("only")), *more]).tree))
    assert len({c.weights.folder for c in cells}) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("only=[seq/onecall]", "only=seq/onecall: seq has no such sampler; did you mean 'one_call'"),
        (
            "methods.seq.samplers.one_cal={}",
            "methods.seq.samplers.one_cal: there is no sampler 'one_cal'; did you mean",
        ),
        (
            "methods.seq.samplers.diffusion.etta=1",
            "samplers.diffusion.etta: sampler diffusion has no such option; did you",
        ),
        ("methods.seq.samplers.diffusion=3", "methods.seq.samplers.diffusion=3: is a mapping of options"),
        ("methods.seqq.samplers.diffusion.eta=1", "unknown key 'methods.seqq.samplers.diffusion.eta'"),
        ("+study.nfe_of.seq.onecall=[2]", "study.nfe_of.seq.onecall: seq has no such sampler"),
        ("+study.nfe_of.seq.one_call=2", "study.nfe_of.seq.one_call=2: is a list of budgets"),
        ("methods.seq.samplers.top_p={}", "sampler TopP draws from MaskedModel, not from SEQ"),
    ],
)
def test_samplers_that_are_not_there_are_refused_in_one_line(arguments, word, message):
    choice = [] if word.startswith("only") else ["only=[seq]"]
    said = invoke([*(a for a in arguments if not a.startswith("only")), *choice, word])
    assert said.code == 2 and message in said.error and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["scale.batch=1", "methods.seq.match=0.2"],
            "scale.batch=1: methods.seq trains on 2 sequences at a time or more; use scale.batch=2 or more",
        ),
        (
            ["scale.batch=6", "train.accumulate=6", "methods.seq.match=0.2"],
            "scale.batch=6, cut into train.accumulate=6 parts: methods.seq trains on 2 sequences at a time or more; "
            "use scale.batch=12 or more",
        ),
    ],
)
def test_parts_that_a_method_cannot_be_trained_on_are_refused_before_any_work(arguments, more, message):
    said = invoke([*arguments, "study.name=small", *more])
    assert said.code == 2 and said.error == f"error: {message}"
    session = Session(load([*arguments, *more, "only=[mdlm]"]).tree)
    assert [cell.method for cell in make_cells(session)] == ["mdlm"]


def test_a_judge_whose_files_were_altered_is_another_configuration(arguments, tmp_path):
    folder = save(tmp_path / "tiny", tiny_gpt2())

    def key() -> str:
        own = [a for a in arguments if not a.startswith("judge.")]
        session = Session(load([*own, "judge=pretrained", f"judge.model={folder}"]).tree)
        return config_key(session, make_cells(session))

    before = key()
    assert key() == before
    altered(folder, "config.json", layer_norm_epsilon=0.5)
    assert key() != before
