"""A study of an exact task from the command line: the floor's rows, distances from the truth, and none of it elsewhere."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness.interface import Problem
from harness.nn.transformer import TrunkShape
from harness.store import ResultsTable, read_json
from harness.study.cells import Cell, Part, Weights
from harness.study.exact import EXACT_CALLS, PATHS, SEQUENCES, TRAINED_CALLS, against_truth, share_calls
from harness.study.rows import _against_truth
from harness.tasks.permutation import Permutation
from harness.tasks.templates import Templates
from tests.kit.study_kit import invoke, use_threads, write_corpus

BUDGETS = (1, 4)
SMALL = ("data.train=500", "data.heldout=200")
STUDY = """\
# @package _global_
# A tiny study of an exact task.
defaults:
  - /data: templates
  - /tokenizer: characters
  - /scale: nano
  - /judge: oracle
  - /method@methods.oracle: oracle
  - /method@methods.unigram: unigram
  - /method@methods.mdlm: mdlm
  - /method@methods.seq: seq
  - /metric@metrics.gen_ppl: gen_ppl
  - /metric@metrics.excess: excess
  - /metric@metrics.diversity: diversity
  - /metric@metrics.variation: variation
study: {name: tiny, nfe: [1, 4], samples: 100, bound_sequences: 200, bound_draws: 1}
scale: {width: 16, depth: 1, heads: 2, length: 6, steps: 20, batch: 8}
metrics: {diversity: {pairs: 3, resamples: 5}}
methods: {seq: {slots: 2, dims: 2, encoder_depth: 1, prior_depth: 1}}
compute: {device: cpu, precision: float32, workers: 1, compile: "false"}
tracking: {enabled: false}
"""


def run_study(folder, *more: str):
    (folder / "study").mkdir(parents=True, exist_ok=True)
    (folder / "study" / "tiny.yaml").write_text(STUDY, encoding="utf-8")
    return invoke(
        [
            "--config-dir",
            str(folder),
            "study=tiny",
            f"runs_dir={folder / 'runs'}",
            f"cache_dir={folder / 'cache'}",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("exact")
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        said = run_study(root, "only=[oracle,unigram,mdlm]", "data.classes=4", "data.symbols=3", *SMALL)
    assert said.code == 0, said.err
    return root / "runs" / "tiny"


@pytest.fixture(scope="module")
def frame(folder) -> pd.DataFrame:
    return ResultsTable.read(folder / "results.parquet").set_index(["method", "nfe"]).sort_index()


def test_the_floor_runs_at_every_budget_and_is_no_method(frame):
    rows = frame.loc["oracle"]
    assert (
        tuple(rows.index) == BUDGETS
        and set(rows["role"]) == {"floor"}
        and set(rows["title"]) == {"Oracle, linear schedule"}
    )
    assert rows["equivalent_nfe"].isna().all() and frame.loc[("mdlm", 4), "equivalent_nfe"] > 1
    assert (rows["params"] == 0).all() and set(rows["nfe_token"]) == set(BUDGETS)


def test_one_call_of_the_oracle_is_the_total_correlation_from_the_truth(frame):
    task = Templates(6, classes=4, symbols=3)
    row = frame.loc[("oracle", 1)]
    assert abs(row["reverse_nats"] - task.exact.total_correlation) < 4 * row["reverse_nats_se"]
    assert 0 < row["reverse_nats_se"] < 0.3 * row["reverse_nats"]
    assert row["path_nats"] == row["reverse_nats"]
    four = frame.loc[("oracle", 4)]
    assert row["reverse_nats"] > 2 * four["reverse_nats"] and four["path_nats"] > four["reverse_nats"] > 0


def test_bounds_are_compared_with_the_true_likelihood(frame, folder):
    assert frame.loc["oracle", "bound_excess_nats"].abs().max() < 1e-12
    for method in ("mdlm", "unigram"):
        row = frame.loc[method].iloc[-1]
        assert row["bound_excess_nats"] > 4 * row["bound_excess_nats_se"] > 0
    unigram, mdlm = frame.loc[("unigram", 0)], frame.loc[("mdlm", 4)]
    assert unigram["reverse_nats"] == unigram["bound_excess_nats"], "its likelihood is that of what it samples"
    assert math.isnan(unigram["path_nats"]) and mdlm["path_nats"] > mdlm["reverse_nats"]
    assert mdlm["reverse_nats"] > 0 and mdlm["reverse_nats"] != mdlm["bound_excess_nats"]
    data = frame.loc["data"].iloc[0]
    assert math.isnan(data["reverse_nats"]) and math.isnan(data["bound_excess_nats"])
    facts = read_json(next(folder.glob("cells/mdlm-*/facts-*-nfe1-4.json")))
    assert facts["reverse"]["4"]["estimator"] == "-log mean of exp(-path nll) over 2 path(s), 200 test sequences"


def test_metrics_and_the_judge_agree_on_the_data(frame):
    task = Templates(6, classes=4, symbols=3)
    for _, row in frame.iterrows():
        by_judge = 6 * math.log(row["gen_ppl"]) - task.exact.entropy
        assert by_judge == pytest.approx(row["excess_nats"], abs=1e-9) and row["validity"] == 1.0
    assert frame.loc[("mdlm", 1), "stat_distance_ratio"] > 0 and frame["total_variation"].between(0, 1).all()
    assert frame["judge"].iloc[0].startswith("oracle/templates-")


def test_a_study_with_impossible_samples_says_so(tmp_path, monkeypatch):
    use_threads(monkeypatch)
    said = run_study(
        tmp_path, "data=permutation", "scale.length=5", "only=[oracle]", "data.train=50", "data.heldout=200"
    )
    assert said.code == 0, said.err
    rows = ResultsTable.read(tmp_path / "runs" / "tiny" / "results.parquet").set_index("method").loc["oracle"]
    assert (
        (rows["gen_ppl"] == math.inf).all() and (rows["excess_nats"] == math.inf).all() and (rows["validity"] < 1).all()
    )
    assert rows["excess_valid_nats"].dropna().abs().max() < 1e-9
    one = rows[rows["nfe"] == 1].iloc[0]
    task = Permutation(5)
    assert one["reverse_nats"] == pytest.approx(task.exact.total_correlation, abs=1e-9), "the same for each x"
    assert abs(one["validity"] - task.one_step_validity) < 4 * math.sqrt(task.one_step_validity / 100)


def test_the_floor_and_the_judge_are_refused_where_the_law_is_not_known(tmp_path, monkeypatch):
    use_threads(monkeypatch)
    corpus = write_corpus(tmp_path / "words.txt")
    for only, who in (("oracle", "method=oracle"), ("unigram", "judge=oracle")):
        said = run_study(tmp_path, "data=text", f"data.path={corpus}", f"only=[{only}]", "study.samples=24")
        assert said.code != 0 and f"{who} needs data with an exact answer; choose data=binsaw" in said.err
        assert "Traceback" not in said.err


@pytest.mark.parametrize("calls", [TRAINED_CALLS, EXACT_CALLS])
def test_calls_are_shared_within_the_limit(calls):
    for nfe in (1, 2, 4, 8, 16, 32, 64, 100, 4096, 10**6):
        n, m = share_calls(8192, nfe, calls)
        assert 1 <= n <= SEQUENCES and 1 <= m <= PATHS and (nfe > 1 or m == 1)
        assert n * m * nfe <= calls or (n, m) == (1, 1)
    assert [share_calls(8192, k, 8192) for k in (1, 2, 4, 16, 32, 64)] == [
        (512, 1), (512, 8), (512, 4), (512, 1), (256, 1), (128, 1),
    ]  # fmt: skip
    assert share_calls(100, 16, 8192) == (100, 5)


def test_without_a_known_law_nothing_is_added(tmp_path):
    session = SimpleNamespace(data=SimpleNamespace(task=None))
    cell = Cell("m", "s", "M", "method", 0, "key", tmp_path, (Part(2, 1.0),), Weights("m", 0, "key", tmp_path))
    assert against_truth(session, cell, None, np.zeros((2, 3)), np.zeros(2), True) == {}
    assert _against_truth(session, {}, Part(2, 1.0)) == {}
    assert Problem(2, 3, TrunkShape(8, 1, 1, 1.0)).truth is None


def test_other_temperatures_have_no_path_figure():
    session = SimpleNamespace(data=SimpleNamespace(task=object()))
    facts = {"bound_excess_nats": 1.0, "bound_excess_nats_se": 0.1, "reverse": {"2": {"nats": 2.0, "se": 0.2}}}
    assert _against_truth(session, facts, Part(2, 1.0))["reverse_nats"] == 2.0
    for part in (Part(2, 0.5), Part(4, 1.0)):
        found = _against_truth(session, facts, part)
        assert found["reverse_nats"] is None and found["bound_excess_nats"] == 1.0
