"""Numbers that stay true: altered files and edited code are named, and never mixed with what is here now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.config.load import load
from harness.store import ResultsTable, read_json, write_json
from harness.study import made
from harness.study.cells import make_cells
from harness.study.session import Session
from tests.kit.study_kit import command, invoke, snapshot
from tests.kit.study_plugins import write_configs

pytestmark = pytest.mark.usefixtures("threads")


def _frame(folder: Path) -> pd.DataFrame:
    return ResultsTable.read(folder / "results.parquet")


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished study: its folder and the arguments that made it."""
    folder = tmp_path / "runs" / "smoke"
    shutil.copytree(finished.folder, folder)
    return folder, command(finished.corpus, tmp_path / "runs", finished.cache)


# ---- altered files ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("weights/mdlm-*/model.safetensors", -5),
        ("weights/seq-*/plan.json", 30),
        ("weights/seq-*/cost.json", 30),
        ("cells/mdlm-*/samples-nfe0002-*.safetensors", -8),
        ("cells/mdlm-*/scores-nfe0004-*.json", 200),
        ("cells/fuji-*/facts-*.json", 30),
        ("protocol.json", 20),
        ("state.json", 20),
    ],
)
def test_one_altered_bit_is_named_and_mended(finished, copied, pattern, place):
    folder, arguments = copied
    path = next(folder.glob(pattern))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    said = invoke(arguments)
    assert said.code == 0, said.err
    assert f"{path} is damaged" in said.err and f"{path.name}.damaged" in said.err
    ours, theirs = _frame(folder), _frame(finished.folder)
    same = [name for name in ours if name not in ("time_ms", "seconds_per_seq", "seconds_per_seq_se", "mlflow_run_id")]
    pd.testing.assert_frame_equal(ours[same], theirs[same], check_exact=True)


@pytest.mark.parametrize("text", ["null", "{}", "[]", '{"id": "x"}', '{"id"'])
def test_json_that_is_something_else_is_mended(copied, text):
    folder, arguments = copied
    for pattern in ("protocol.json", "state.json", "weights/mdlm-*/cost.json", "cells/mdlm-*/facts-*.json"):
        next(folder.glob(pattern)).write_text(text)
    said = invoke(arguments)
    assert said.code == 0 and "Traceback" not in said.err and said.err.count("is damaged") == 4


def test_weights_that_were_put_there_since_are_not_taken_for_those_that_drew(copied):
    folder, arguments = copied
    from harness.training import checkpoint

    path = next(folder.glob("weights/mdlm-*/model.safetensors"))
    tensors, meta = checkpoint.load_tensors(path)
    checkpoint.save_tensors(path, {k: v + 1e-3 if v.is_floating_point() else v for k, v in tensors.items()}, meta)
    said = invoke(arguments)
    assert said.code == 2 and "what the sample step read changed" in said.error and "redo=[mdlm]" in said.error


# ---- edited code ------------------------------------------------------------------------------------------------------
_EDITS = {"train": "tests.kit.study_plugins", "sample": "harness.diffusion.masked", "score": "harness.metrics.base"}


@pytest.fixture
def toy(tmp_path) -> list[str]:
    arguments = [
        *write_configs(tmp_path / "configs"),
        f"runs_dir={tmp_path / 'runs'}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    assert invoke(arguments).code == 0
    return arguments


def _edited(monkeypatch, step: str) -> None:
    """From here on the code of a step is another one, as it would be in a new process after an edit."""
    true = made.code_behind
    monkeypatch.setattr(
        made,
        "code_behind",
        lambda s, what, cell: true(s, what, cell) | ({_EDITS[step]: "edited"} if what == step else {}),
    )
    monkeypatch.setattr(made, "_commit", lambda: "0123456789abcdef")


@pytest.mark.parametrize("step", ["train", "sample", "score"])
def test_edited_code_is_named_and_its_results_are_refused_kept_or_made_again(toy, tmp_path, monkeypatch, step):
    folder = tmp_path / "runs" / "toy"
    before, files = _frame(folder), snapshot(folder)
    _edited(monkeypatch, step)
    said = invoke(toy)
    assert said.code == 2 and f"{_EDITS[step]} changed" in said.error and snapshot(folder) == files
    kept = invoke([*toy, "stale=keep"])
    assert kept.code == 0 and "stale=keep: finished results" in kept.err
    columns = ["git_sha", "git_sha_train", "git_sha_score", "gen_ppl"]
    pd.testing.assert_frame_equal(_frame(folder)[columns], before[columns], check_exact=True)
    names = "data,positions" if step == "score" else "positions"
    again = invoke([*toy, f"redo=[{names}]"])
    assert again.code == 0 and "the results until now are kept in" in again.err, again.err
    after = _frame(folder)
    own = after[after["method"] == "positions"]
    new = {"train": 3, "sample": 2, "score": 1}[step]  # what comes after it is made again as well
    shown = [(own[column] == "0123456789abcdef").all() for column in ("git_sha_score", "git_sha", "git_sha_train")]
    assert shown == [True] * new + [False] * (3 - new)
    assert invoke(toy).code == 0, "and that is that"


def test_a_row_keeps_the_commit_that_made_it(toy, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "toy"
    before = _frame(folder)
    monkeypatch.setattr(made, "_commit", lambda: "0123456789abcdef")
    assert invoke([*toy, "study.seeds=[0,1]"]).code == 0
    after = _frame(folder)
    assert set(after.loc[after["seed"] == 1, "git_sha"]) == {"0123456789abcdef"}
    assert set(after.loc[after["seed"] == 0, "git_sha"]) == set(before["git_sha"])


@pytest.mark.parametrize("name", ["position", "positions/independant"])
def test_an_unknown_name_to_redo_is_refused(toy, name):
    said = invoke([*toy, f"redo=[{name}]"])
    assert said.code == 2 and f"redo={name}" in said.error and "did you mean 'positions" in said.error


def test_training_that_diverged_is_tried_again_with_other_code(tmp_path, monkeypatch):
    arguments = [
        *write_configs(tmp_path / "configs"),
        f"runs_dir={tmp_path / 'runs'}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    poisoned = [*arguments, "methods.positions.poison_from=1"]
    assert invoke(poisoned).code == 1
    failed = next((tmp_path / "runs" / "toy").glob("weights/*/failed.json"))
    time = failed.stat().st_mtime_ns
    assert invoke(poisoned).code == 1 and failed.stat().st_mtime_ns == time
    known = read_json(failed)
    known["made"]["code"]["tests.kit.study_plugins"] = "before"
    write_json(failed, known)
    assert invoke(poisoned).code == 1 and failed.stat().st_mtime_ns > time


def test_what_a_method_depends_on_is_its_own(finished):
    session = Session(load(command(finished.corpus, finished.folder.parent, finished.cache)).tree)
    cells = {(cell.method, cell.sampler): cell for cell in make_cells(session)}
    mdlm = made.code_behind(session, "train", cells["mdlm", "ancestral"].weights)
    seq = made.code_behind(session, "train", cells["seq", "diffusion"].weights)
    assert "baselines.mdlm" in mdlm and not any(name.startswith("lddm") for name in mdlm)
    assert {"lddm.seq", "harness.training.loop"} <= set(seq)
    drawn = made.code_behind(session, "sample", cells["mdlm", "ancestral"])
    assert {"baselines.samplers.ancestral", "harness.diffusion.masked", "harness.study.bound"} <= set(drawn)
    assert not any(name.startswith(("harness.report", "harness.tracking", "harness.training.loop")) for name in drawn)
    scored = made.code_behind(session, "score", cells["mdlm", "ancestral"])
    assert {"harness.metrics.mauve", "harness.judges.trained"} <= set(scored) and "baselines.mdlm" not in scored
