"""Commands one after another on the same study: another configuration, a part of it, a plan; and somebody's own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.store import ResultsTable, read_json
from tests.kit.study_kit import METHODS, ROWS, command, invoke, snapshot
from tests.kit.study_plugins import write_configs

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def toy(tmp_path) -> list[str]:
    return [*write_configs(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]


def _frame(folder: Path) -> pd.DataFrame:
    return ResultsTable.read(folder / "results.parquet")


def _models(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("weights/*/model.safetensors")}


# ---- one's own classes ------------------------------------------------------------------------------------------------
def test_own_method_data_judge_and_metric_run_without_a_change_to_the_harness(toy, tmp_path):
    said = invoke(toy)
    assert said.code == 0, said.err
    folder = tmp_path / "runs" / "toy"
    frame = _frame(folder)
    assert list(frame["method"]) == ["data", "positions", "positions"]
    assert set(frame["judge"]) == {"letters-1.0"} and set(frame["data"]) == {"alternating"}
    rows = frame.set_index(["method", "nfe"])
    # A letter is the one of its turn with probability 0.8 + 0.2 / 5, any other one with 0.2 / 5.
    expected = 0.84**2 + 4 * 0.04**2
    assert frame.loc[frame["method"] == "data", "repeats"].item() == pytest.approx(expected, abs=0.1)
    # Independent positions cannot: at best the chance that two draws agree, which is a third of the symbols in use.
    assert rows.loc[("positions", 4), "repeats"] < 0.5
    for title in ("Positions", "Repeats", "Gen. PPL"):
        assert title in said.out
    report = (folder / "report.md").read_text()
    assert "share of tokens equal to the one three before" in report and "Judge: `letters-1.0`" in report
    path = folder / "samples" / "positions-independent-seed0-nfe0002-T1.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    x_NL = np.array([record["ids"] for record in records])
    assert (x_NL[:, 3:] == x_NL[:, :-3]).mean() == pytest.approx(rows.loc[("positions", 2), "repeats"])
    assert records[0]["text"] == "".join("abcde"[i] for i in records[0]["ids"])


def test_own_options_are_checked_like_any(toy):
    said = invoke([*toy, "methods.positions.poison_form=3"])
    assert said.code == 2 and "did you mean 'methods.positions.poison_from'?" in said.error
    assert invoke([*toy, "methods.positions.poison_from=soon"]).code == 2


# ---- another configuration --------------------------------------------------------------------------------------------
def test_another_configuration_puts_results_aside_and_trains_only_what_is_new(toy, tmp_path):
    folder = tmp_path / "runs" / "toy"
    assert invoke(toy).code == 0
    first, models, key = snapshot(folder), _models(folder), read_json(folder / "state.json")["key"]
    said = invoke([*toy, "study.samples=24", "study.seeds=[0,1]"])
    assert said.code == 0 and f"its results are in {folder / 'earlier' / key}" in said.err
    earlier = snapshot(folder / "earlier" / key)
    kept = ("cells", "weights", "state.json", ".lock", ".judge.lock", ".state.lock")
    results = {n: h for n, h in first.items() if n.split("/")[0] not in kept}
    assert earlier == results
    assert models.items() <= _models(folder).items() and len(_models(folder)) == 2
    frame = _frame(folder)
    assert set(frame["n"]) == {24} and set(frame.loc[frame["method"] == "positions", "seed"]) == {0, 1}


def test_going_back_to_a_configuration_brings_all_of_its_results_back(toy, tmp_path):
    folder = tmp_path / "runs" / "toy"
    wide = [*toy, "study.nfe=[2,3,4]"]
    assert invoke(wide).code == 0
    results, samples = _frame(folder), snapshot(folder / "samples")
    assert invoke([*wide, "study.nfe=[2]"]).code == 0
    assert set(snapshot(folder / "samples")) == {
        "data-nfe0000-T1.jsonl",
        "positions-independent-seed0-nfe0002-T1.jsonl",
    }
    assert invoke(wide).code == 0
    assert snapshot(folder / "samples") == samples
    columns = [c for c in results.columns if c != "git_sha"]
    pd.testing.assert_frame_equal(_frame(folder)[columns], results[columns], check_exact=True)


def test_only_runs_what_it_names(finished, tmp_path):
    folder = tmp_path / "runs" / "smoke"
    for name in ("cells", "weights"):
        shutil.copytree(finished.folder / name, folder / name)
    models = _models(folder)
    said = invoke(command(finished.corpus, tmp_path / "runs", finished.cache, "only=[seq,bigram]"))
    assert said.code == 0, said.err
    frame, whole = _frame(folder), _frame(finished.folder)
    assert set(frame["method"]) == {"data", "seq", "bigram"} and _models(folder) == models
    columns = ["method", "nfe", "gen_ppl", "entropy", "mauve", "nelbo_nats_per_token", "flops_per_seq"]
    part = whole[whole["method"].isin(frame["method"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame[columns], part[columns], check_exact=True)
    assert len(list((folder / "samples").glob("*.jsonl"))) == len(frame)


def test_temperatures_are_swept_for_methods_and_not_for_references(toy, tmp_path):
    said = invoke([*toy, "+method@methods.unigram=unigram", "study.temperatures=[1.0,0.5]"])
    assert said.code == 0, said.err
    frame = _frame(tmp_path / "runs" / "toy")
    assert sorted(frame.loc[frame["method"] == "positions", "temperature"]) == [0.5, 0.5, 1.0, 1.0]
    assert set(frame.loc[frame["method"] != "positions", "temperature"]) == {1.0}
    rows = frame[frame["method"] == "positions"].set_index(["nfe", "temperature"])["gen_ppl"]
    assert rows[(2, 0.5)] != rows[(2, 1.0)] and rows[(2, 0.5)] != rows[(4, 0.5)]


def test_two_seeds_are_two_trainings_and_one_count(toy, tmp_path):
    assert invoke([*toy, "+method@methods.unigram=unigram", "study.seeds=[0,1]"]).code == 0
    frame = _frame(tmp_path / "runs" / "toy")
    assert set(frame.loc[frame["method"] == "positions", "seed"]) == {0, 1}
    assert list(frame.loc[frame["method"] == "unigram", "seed"]) == [0]
    bounds = frame[frame["method"] == "positions"].groupby("seed")["nelbo_nats_per_token"].first()
    assert bounds[0] != bounds[1]


def test_another_judge_reads_the_samples_that_are_there(finished, tmp_path, monkeypatch, threads):
    folder = tmp_path / "runs" / "smoke"
    shutil.copytree(finished.folder, folder)
    for name in ("drawing.draw_samples", "steps.fit"):
        monkeypatch.setattr(f"harness.study.{name}", lambda *_: pytest.fail("sampled or trained again"))
    same = command(finished.corpus, tmp_path / "runs", finished.cache, "only=[mdlm,bigram]")
    first, other = _frame(finished.folder), "judge.seed=1"
    assert (said := invoke([*same, other])).code == 0, said.err
    again = _frame(folder)
    kept = first[first["method"].isin(again["method"])].reset_index(drop=True)
    assert set(again["judge"]).isdisjoint(kept["judge"]) and list(again["entropy"]) == list(kept["entropy"])
    assert (again["gen_nats_per_char"] != kept["gen_nats_per_char"]).all()
    before = snapshot(folder / "cells")
    monkeypatch.setattr("harness.metrics.perplexity.GenerativePerplexity.score", lambda *_: pytest.fail("scored again"))
    assert invoke(same).code == 0
    assert snapshot(folder / "cells") == before and list(_frame(folder)["gen_ppl"]) == list(kept["gen_ppl"])


# ---- the plan ---------------------------------------------------------------------------------------------------------
def test_plan_says_what_would_run_and_writes_no_result(finished, tmp_path):
    said = invoke(command(finished.corpus, tmp_path / "runs", finished.cache, "plan=true", "study.seeds=[0,1]"))
    assert said.code == 0, said.err
    assert not (tmp_path / "runs").exists()
    table = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in said.out.splitlines()
        if line.startswith("| ") and "seed" in line
    ]
    assert [row[0] for row in table] == [
        *(f"{name}/counts/seed0" for name in ("unigram", "bigram", "ngram")),
        *(f"{name}/{label}/seed{seed}" for name, label in ROWS if label != "counts" for seed in (0, 1)),
    ]
    first = {name: f"{name}/{label}/seed0" for name, label in reversed(ROWS)}
    by_cell = {row[0]: row[1:] for row in table}
    params = _frame(finished.folder).set_index("method")["params"]
    for name in ("mdlm", "fuji", "seq", "ar"):
        assert by_cell[first[name]][0] == str(params[name].max() if name != "ar" else params[name])
    steps = {name: int(by_cell[first[name]][1]) for name in METHODS[3:]}
    assert steps["seq"] < steps["fuji"] < steps["mdlm"] == 60 < steps["ar"], "what 60 steps of MDLM cost"
    assert [by_cell[first[name]][2] for name in ("mdlm", "ar", "bigram")] == ["2, 4", "32", "0"]
    assert all(":" in row[4] and ":" in row[5] and row[6] == "" for row in table)
    assert "about " in said.out and str(tmp_path / "runs" / "smoke") in said.out


def test_plan_knows_what_is_done(finished):
    before = snapshot(finished.folder)
    said = invoke(command(finished.corpus, finished.runs, finished.cache, "plan=true", "study.nfe=[2,4,8]"))
    assert snapshot(finished.folder) == before
    done = {
        line.split("|")[1].strip(): line.split("|")[7].strip() for line in said.out.splitlines() if "/seed0" in line
    }
    assert done["mdlm/ancestral/seed0"] == "trained"
    assert done["ar/left_to_right/seed0"] == done["bigram/counts/seed0"] == "all"
