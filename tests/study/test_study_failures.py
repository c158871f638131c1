"""What goes wrong while a study runs: a loss that is not a number, a broken sampler or metric, damaged files, a full disk."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

import harness.store
from harness.config.load import load
from harness.store import ResultsTable, read_json
from harness.study.cells import make_cells
from harness.study.session import Session
from tests.kit.study_kit import command, invoke, snapshot
from tests.kit.study_plugins import write_configs

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def toy(tmp_path) -> list[str]:
    return [*write_configs(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]


def test_a_cell_that_fails_stops_alone_and_is_named(toy, tmp_path):
    bad = ["+method@methods.poisoned=positions", "methods.poisoned.poison_from=12"]
    bad += ["methods.positions.samplers.liar={}"]
    said = invoke([*toy, *bad])
    assert said.code == 1
    why = "the loss is nan at step 13; a smaller scale.lr (now 0.1) may help"
    lie = "Liar reports 2 calls at NFE 2; its networks saw 3"
    assert f"failed: poisoned/seed0: {why}" in said.err.splitlines()
    (lying,) = [line for line in said.err.splitlines() if line.startswith("failed: positions/liar/seed0")]
    assert lying.endswith(lie)
    frame = ResultsTable.read(tmp_path / "runs" / "toy" / "results.parquet")
    assert set(frame["method"]) == {"data", "positions"} and len(frame) == 3
    report = (tmp_path / "runs" / "toy" / "report.md").read_text()
    assert f"- poisoned/seed0 failed: {why}" in report and lie in report
    assert "Positions" in said.out and "Liar" not in said.out

    again = invoke([*toy, *bad])
    assert again.code == 1 and f"failed: poisoned/seed0: {why}" in again.err.splitlines()
    assert len(list((tmp_path / "runs" / "toy" / "weights").glob("*/model.safetensors"))) == 1, (
        "that of the healthy one"
    )


def test_a_metric_that_fails_is_a_failure_too(toy):
    said = invoke([*toy, "+metric@metrics.broken=broken"])
    assert said.code == 1
    assert "failed: positions/independent/seed0: ArithmeticError: no logarithm of nothing" in said.err.splitlines()
    assert "Held-out data" in said.out


def test_disk_that_fills_up_in_training_ends_the_study_in_one_line(toy, monkeypatch):
    monkeypatch.setattr(harness.store, "os", os)  # the method under test replaces it; this puts it back
    said = invoke([*toy, "+method@methods.full=full_disk", "only=[full]"])
    assert said.code == 2
    assert (
        said.error.startswith("error: no space left on the disk while writing ") and "model.safetensors" in said.error
    )
    assert "run the same command again" in said.error and "Traceback" not in said.err


def test_full_disk_leaves_the_results_and_the_command_goes_on(toy, tmp_path, monkeypatch):
    assert invoke(toy).code == 0
    folder = tmp_path / "runs" / "toy"
    before = snapshot(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(harness.store.os, "replace", full)
        said = invoke(toy)
    assert said.code == 2 and "no space left on the disk while writing" in said.error
    assert snapshot(folder) == before
    left = [at / ".x.json.0f0f0f-1-0123ab.part" for at in (folder / "cells", folder, tmp_path / "cache")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1e9, 1e9))
    assert invoke(toy).code == 0
    assert not any(path.exists() for path in left), "what a kill left long ago"


def _copy_without(finished, tmp_path, name: str, *patterns: str):
    """The finished study without some files of one cell; returns the cell and the arguments."""
    shutil.copytree(finished.folder, tmp_path / "runs" / "smoke")
    arguments = command(finished.corpus, tmp_path / "runs", finished.cache)
    cell = next(c for c in make_cells(Session(load(arguments).tree)) if c.method == name)
    assert cell.folder.is_dir()
    for pattern in patterns:
        for folder in (cell.folder, cell.weights.folder):
            for path in folder.glob(pattern):
                path.unlink()
    return cell, arguments


def _half(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_model_that_is_cut_short(finished, tmp_path):
    cell, arguments = _copy_without(finished, tmp_path, "mdlm", "samples-*")
    _half(cell.weights.model)
    said = invoke(arguments)
    assert said.code == 0 and f"{cell.weights.model} is damaged" in said.err and "made again" in said.err
    assert cell.weights.model.with_name("model.safetensors.damaged").exists()
    again = ResultsTable.read(tmp_path / "runs" / "smoke" / "results.parquet")
    former = ResultsTable.read(finished.folder / "results.parquet")
    assert list(again["gen_ppl"]) == list(former["gen_ppl"])


def test_training_checkpoint_that_is_cut_short(finished, tmp_path):
    cell, arguments = _copy_without(finished, tmp_path, "mdlm", "cost.json")
    cell.weights.model.rename(cell.weights.checkpoint)
    _half(cell.weights.checkpoint)
    said = invoke(arguments)
    assert said.code == 0 and "train.safetensors is damaged" in said.err


def test_model_of_another_shape_is_not_loaded(finished, tmp_path):
    cell, arguments = _copy_without(finished, tmp_path, "mdlm", "samples-*")
    other = next(cell.weights.folder.parent.glob("autoregressive-*")) / "model.safetensors"
    shutil.copy(other, cell.weights.model)
    said = invoke(arguments)
    # The two networks have the same names; what differs must be found, or garbled samples would follow.
    assert said.code == 0 and "it is of another model" in said.err
    again, former = (ResultsTable.read(f / "results.parquet") for f in (tmp_path / "runs" / "smoke", finished.folder))
    assert list(again["gen_ppl"]) == list(former["gen_ppl"])


@pytest.mark.parametrize(
    ("model", "fragment"),
    [("config_only", "no *.safetensors weights"), ("nothing", "is not a folder"), ("empty", "has no config.json")],
)
def test_judge_without_weights(finished, tmp_path, model, fragment):
    (tmp_path / "config_only").mkdir()
    (tmp_path / "config_only" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "empty").mkdir()
    shutil.copytree(finished.folder, tmp_path / "runs" / "smoke")
    before = snapshot(tmp_path / "runs" / "smoke")
    del before["state.json"]  # it names the configuration that the folder is about
    arguments = [a for a in command(finished.corpus, tmp_path / "runs", finished.cache) if not a.startswith("judge.")]
    arguments[0] = "study=few_step"
    same = ["study.name=smoke", "scale.length=32", "only=[unigram]"]
    said = invoke([*arguments, *same, "judge=pretrained", f"judge.model={tmp_path / model}"])
    assert said.code == 2, said.err
    assert f"judge model={tmp_path / model}" in said.error and fragment in said.error and "judge=trained" in said.error
    assert set(before.values()) <= set(snapshot(tmp_path / "runs" / "smoke").values())


def test_damaged_facts_are_named_and_made_again(finished, tmp_path):
    cell, arguments = _copy_without(finished, tmp_path, "mdlm")
    facts = next(cell.folder.glob("facts-*"))
    _half(facts)
    said = invoke(arguments)
    assert said.code == 0 and f"{facts} is damaged (it is not JSON" in said.err
    assert read_json(facts) == read_json(next(finished.folder.glob(f"cells/{cell.folder.name}/facts-*")))
