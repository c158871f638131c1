"""What a finished study leaves behind: the printed table, the parquet file, samples, figures, the report; and a replay."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from harness.config.load import load
from harness.metrics.entropy import sequence_entropy
from harness.store import SCHEMA, ResultsTable, read_json
from harness.study.session import Session
from tests.kit.study_kit import BUDGETS, METHODS, ROWS, command, invoke, snapshot

LENGTH, SAMPLES = 32, 24
#: NFE at which each method is measured; None for held-out data, which nobody samples.
WANTED = {
    "data": [None],
    "unigram": [0],
    "bigram": [0],
    "ngram": [0],
    "ar": [LENGTH],
    **{name: list(BUDGETS) for name in ("mdlm", "fuji", "seq")},
    "seq_discrete": [*BUDGETS, 1, 2],  # drawn, and given codes
}


@pytest.fixture(scope="module")
def session(finished) -> Session:
    return Session(load(finished.arguments).tree)


@pytest.fixture(scope="module")
def frame(finished) -> pd.DataFrame:
    return ResultsTable.read(finished.folder / "results.parquet")


def test_the_study_ends_well(finished):
    assert finished.said.code == 0, finished.said.err
    assert "Traceback" not in finished.said.err and "failed" not in finished.said.err


def test_table_has_a_row_for_each_method_and_budget(finished):
    report = (finished.folder / "report.md").read_text().split("## Scores")[1].split("###")[0].splitlines()
    rows = [line.split("|")[1:3] for line in report if line.startswith("| ")][1:]
    found = [(name.strip(), nfe.strip()) for name, nfe in rows]
    assert found == [
        ("*Held-out data*", "—"),
        *[("FUJI", str(k)) for k in BUDGETS],
        *[("MDLM", str(k)) for k in BUDGETS],
        *[("SEQ", f"{k} ({k // 2}+{k // 2})") for k in BUDGETS],
        *[("SEQ, EM codes", f"{k} (1+{k - 1})") for k in BUDGETS],
        *[("*SEQ, encoder codes*", str(k)) for k in (1, 2)],
        ("*Autoregressive*", str(LENGTH)),
        ("*Bigram*", "0"),
        ("*Best n-gram*", "0"),
        ("*Unigram*", "0"),
    ]
    header = next(line for line in report if line.startswith("| Method"))
    for title in ("NFE", "Equiv. NFE", "Nats/char", "entropy (nats)", "MAUVE", "Bound (nats/token)", "Seconds"):
        assert title in header
    shown = [line for line in finished.said.out.splitlines() if line.startswith(("MDLM", "Bigram", "SEQ", "Held-out"))]
    assert len(shown) == 1 + 1 + 2 + 2 + 2 + 2 and max(map(len, shown)) <= 80, "the terminal has the same rows"


def test_places_that_are_printed_exist(finished):
    printed = finished.said.out.splitlines()[-5:]
    assert printed[-2].startswith("MLflow   python -m harness.tracking.ui") and "/#/experiments/" in printed[-1]
    for word, name in zip(
        ("report", "results", "samples"), ("report.html", "results.parquet", "samples"), strict=False
    ):
        line = next(line for line in printed if line.startswith(word))
        assert line.split(maxsplit=1)[1] == str(finished.folder / name) and (finished.folder / name).exists()


def test_parquet_has_the_documented_columns_and_one_row_for_each_measurement(frame):
    assert list(frame.columns)[: len(SCHEMA)] == list(SCHEMA)
    assert {"title", "role", "gen_ppl_se", "entropy_se", "mauve_se"} <= set(frame.columns)
    keys = ["method", "sampler", "seed", "nfe", "temperature"]
    assert not frame.duplicated(keys).any()
    found = {name: [None if pd.isna(k) else int(k) for k in part["nfe"]] for name, part in frame.groupby("method")}
    assert found == WANTED
    assert set(frame["n"]) == {SAMPLES} and set(frame["temperature"]) == {1.0} and set(frame["seed"]) == {0}
    for column in ("study", "data", "judge", "protocol", "device", "dtype"):
        assert frame[column].nunique() == 1 and frame[column].notna().all()
    assert frame["judge"].iloc[0].startswith("trained-")


def test_calls_add_up_and_are_what_each_method_spends(frame):
    sampled = frame[frame["method"] != "data"]
    assert (sampled["nfe"] == sampled["nfe_latent"] + sampled["nfe_token"]).all()
    split = sampled.set_index(["method", "nfe"])
    for k in BUDGETS:
        assert tuple(split.loc[("seq", k), ["nfe_latent", "nfe_token"]]) == (k // 2, k - k // 2)
        for name in ("mdlm", "fuji"):
            assert tuple(split.loc[(name, k), ["nfe_latent", "nfe_token"]]) == (0, k)


def test_scores_are_numbers_where_they_are_defined(frame):
    for column in ("gen_ppl", "gen_ppl_se", "entropy", "entropy_se", "mauve"):
        assert np.isfinite(frame[column]).all()
    assert (frame["gen_ppl"] > 1).all() and frame["entropy"].between(0, math.log(LENGTH)).all()
    assert frame["mauve"].between(0, 1).all()
    sampled = ~frame["role"].isin(("data", "probe"))  # given codes are no model of the data
    assert (
        np.isfinite(frame.loc[sampled, "nelbo_nats_per_token"]).all()
        and frame.loc[frame["method"] == "data", "params"].isna().all()
    )
    bits = frame.loc[sampled, "bits_per_token"] * math.log(2)
    np.testing.assert_allclose(bits, frame.loc[sampled, "nelbo_nats_per_token"])


def test_samples_decode_to_their_text_and_give_the_entropy_in_the_table(finished, frame, session):
    rows = frame[frame["method"] != "data"]
    assert len(list((finished.folder / "samples").glob("*.jsonl"))) == len(frame)
    for _, row in rows.iterrows():
        name = f"{row['method']}-{row['sampler']}-seed{row['seed']}-nfe{row['nfe']:04d}-T1.jsonl"
        path = finished.folder / "samples" / name
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(records) == SAMPLES
        for record in records:
            assert len(record["ids"]) == LENGTH and session.data.decode(record["ids"]) == record["text"]
        assert sequence_entropy(np.array([r["ids"] for r in records])).mean() == pytest.approx(row["entropy"])


def test_held_out_row_is_disjoint_from_the_reference(session):
    reference, held_out = session.reference.x_NL, session.held_out.x_NL
    assert reference.shape == held_out.shape == (SAMPLES, LENGTH)
    assert not {row.tobytes() for row in reference} & {row.tobytes() for row in held_out}


def test_equivalent_budget_is_near_the_strict_one_for_the_baseline(frame):
    """MDLM's call is the unit; it runs its head only where a token is drawn, so it spends slightly less, never more."""
    mdlm = frame[frame["method"] == "mdlm"]
    ratio = mdlm["equivalent_nfe"].to_numpy() / mdlm["nfe"].to_numpy(dtype=float)
    assert (ratio <= 1.0).all() and (ratio > 0.85).all()
    counted = frame[frame["equivalent_nfe"] > 0]
    unit = counted["flops_per_seq"] / counted["equivalent_nfe"]
    assert set(counted["method"]) == {"ar", "mdlm", "fuji", "seq", "seq_discrete"}
    np.testing.assert_allclose(unit, unit.iloc[0], rtol=1e-12)


def test_figures_exist_and_are_embedded(finished):
    names = {path.name for path in (finished.folder / "figures").glob("*.png")}
    scores = ("gen_nats_per_char", "entropy", "mauve")  # its judge has merges
    assert {f"{score}_{budget}.png" for score in scores for budget in ("nfe", "equivalent_nfe")} <= names
    assert "gen_nats_per_char_entropy.png" in names
    report = (finished.folder / "report.md").read_text(encoding="utf-8")
    assert all(f"(figures/{name})" in report for name in names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (finished.folder / "figures").glob("*.png"))


def test_report_holds_the_table_the_judge_and_the_protocol(finished, frame):
    report = (finished.folder / "report.md").read_text(encoding="utf-8")
    assert "| Method | NFE | Equiv. NFE |" in report
    assert f"Judge: `{frame['judge'].iloc[0]}`" in report and f"Protocol: `{frame['protocol'].iloc[0]}`" in report
    assert f"Sequences per score: `{SAMPLES}`" in report
    assert "Judge's perplexity on held-out text" in report and "Definitions" in report
    assert read_json(finished.folder / "protocol.json")["judge"] == frame["judge"].iloc[0]


def test_same_command_again_trains_nothing_and_changes_no_number(finished, frame, tmp_path, monkeypatch):
    shutil.copytree(finished.folder, tmp_path / "runs" / "smoke")
    monkeypatch.setattr("harness.study.runner.Pool", lambda *_: pytest.fail("a worker was started"))
    before = snapshot(tmp_path / "runs" / "smoke" / "cells")
    said = invoke(command(finished.corpus, tmp_path / "runs", finished.cache))
    assert said.code == 0, said.err
    assert snapshot(tmp_path / "runs" / "smoke" / "cells") == before
    again = ResultsTable.read(tmp_path / "runs" / "smoke" / "results.parquet")
    # Without tracking there are no run ids; the code's state may have changed in between.
    others = [c for c in frame.columns if c not in ("mlflow_run_id", "git_sha")]
    pd.testing.assert_frame_equal(again[others], frame[others], check_exact=True)
    assert said.out.split("report  ")[0] == finished.said.out.split("report  ")[0]


def test_all_methods_of_the_study_are_there(session):
    assert {name: tuple(labels) for name, labels in session.rows.items()} == {
        name: tuple(label for method, label in ROWS if method == name) for name in METHODS
    }
