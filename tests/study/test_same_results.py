"""The script that compares two folders of results sees what it is for, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.training.checkpoint import load_tensors, save_tensors
from tests.same_results import main


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    shutil.copytree(finished.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_times_commits_and_the_order_of_rows_do_not_matter(finished, folder, capsys):
    frame = pd.read_parquet(folder / "results.parquet")
    frame["seconds_per_seq"], frame["git_sha"] = 1.0, "another"
    frame.iloc[::-1].to_parquet(folder / "results.parquet")
    assert main(str(finished.folder), str(folder)) == 0
    assert "15 rows, 15 sets of samples, 5 models: 0 differences" in capsys.readouterr().out


def _other_score(folder: Path) -> None:
    frame = pd.read_parquet(folder / "results.parquet")
    frame.loc[3, "entropy"] *= 1 + 1e-12
    frame.to_parquet(folder / "results.parquet")


def _other_sample(folder: Path) -> None:
    path = next(folder.glob("samples/mdlm-*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b"e", b"a", 1))


def _other_weight(folder: Path) -> None:
    path = next(folder.glob("weights/mdlm-*/model.safetensors"))
    tensors, meta = load_tensors(path)
    first = tensors[min(tensors)].view(-1)
    first[0] = torch.nextafter(first[0], torch.tensor(9.0))
    save_tensors(path, tensors, meta)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_score, "column entropy"),
        (_other_sample, "samples-nfe"),
        (_other_weight, "weights of baselines.mdlm.MDLM"),
    ],
)
def test_the_last_bit_of_a_score_a_sample_and_a_weight_is_seen(finished, folder, capsys, change, words):
    change(folder)
    assert main(str(finished.folder), str(folder)) == 1
    assert words in capsys.readouterr().out
