"""`study=published` on a small checkpoint, tokenizer and judge that are made here: nothing is downloaded."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.store import ResultsTable
from tests.kit.checkpoint_kit import LENGTH, random_tensors, write_checkpoint
from tests.kit.hub_fixtures import V, save, tiny_gpt2
from tests.kit.study_kit import invoke, write_corpus

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def words(tmp_path) -> list[str]:
    judge = save(tmp_path / "judge", tiny_gpt2())
    masked = write_checkpoint(tmp_path / "masked", random_tensors(V + 1))
    uniform = write_checkpoint(tmp_path / "uniform", random_tensors(V + 1, seed=1), timed=True, nested=True)
    return [
        "study=published", "only_tasks=[owt]", "only=[mdlm,sdtt,duo]", "data=text",
        f"data.path={write_corpus(tmp_path / 'words.txt')}", f"tokenizer.name={judge}", f"judge.model={judge}",
        f"methods.mdlm.path={masked}", f"methods.sdtt.path={masked}", f"methods.duo.path={uniform}",
        f"scale.length={LENGTH}", "study.nfe=[2,3]", "study.samples=24", "study.bound_sequences=8", "compute.device=cpu",
        "compute.workers=1", "compute.compile=false", "scale.width=16",
        "scale.depth=1", "scale.heads=2", "~metrics.mauve", "~metrics.copied", "tracking.enabled=false",
        f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip


def test_published_checkpoints_are_scored_beside_what_is_in_print(words, tmp_path):
    said = invoke(words)
    assert said.code == 0, said.err
    folder = tmp_path / "runs" / "published" / "owt"
    frame = ResultsTable.read(folder / "results.parquet")
    rows = frame.set_index(["method", "sampler", "nfe"])
    assert {m for m, _, _ in rows.index} == {"data", "mdlm", "sdtt", "duo"}
    assert rows.loc[("mdlm", "ancestral", 2), ["printed_gen_ppl", "printed_entropy"]].tolist() == [1909, 5.65]
    assert rows.loc[("sdtt", "ancestral", 2), "printed_gen_ppl"] == 1496
    assert pd.isna(rows.loc[("mdlm", "ancestral", 3), "printed_gen_ppl"])
    assert pd.isna(rows.loc[("duo", "greedy", 2), "printed_gen_ppl"])
    assert (rows.loc["duo", "gen_ppl"] > 1).all() and rows.loc[("mdlm", "ancestral", 2), "params"] > 0
    # Equal weights are equal rows, whoever they are said to be from.
    assert rows.loc[("mdlm", "ancestral", 2), "gen_ppl"] == rows.loc[("sdtt", "ancestral", 2), "gen_ppl"]
    report = (folder / "report.md").read_text()
    part = report[report.index("### Beside what is in print") :]
    assert "| in print | 1909 | — |" in part and "arXiv 2609.02405" in part and "Duo (published)" not in part[:400]


def test_a_path_that_is_not_there_is_one_line(words, tmp_path):
    rest = [word for word in words if not word.startswith(("methods.mdlm.path", "only="))]
    said = invoke([*rest, f"methods.mdlm.path={tmp_path / 'maskd'}", "only=[mdlm]"])
    assert said.code == 2 and "did you mean 'masked'?" in said.error
