"""Two processes that hold a share each of what they train: the curves of two that hold all of it, and half of its memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.load import load
from harness.errors import UserError
from harness.jobs.launch import launch
from harness.store import read_jsonl
from tests.kit.rank_kit import Run
from tests.kit.study_kit import command

MUON, PARTS, STAGES = ("mdlm", 2, "muon"), ("mdlm", 4, "adamw"), ("seq", 2, "adamw")
RUNS = [Run(*kind, shard=shard, steps=12) for kind in (MUON, PARTS, STAGES) for shard in (False, True)]
RUNS += [Run(*MUON, shard=shard, resumes=True, steps=12) for shard in (False, True)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder, said = tmp_path_factory.mktemp("shards"), []
    (folder / "spec.json").write_text(json.dumps({"do": "train", "folder": str(folder), "runs": list(map(vars, RUNS))}))
    launch("tests.kit.rank_kit", str(folder / "spec.json"), 2, said.append, folder / "log")
    return folder, said


def weights(trained, run: Run, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(trained[0] / run.label / f"rank{rank}.safetensors")


def curve(trained, run: Run) -> list[dict[str, float]]:
    lines = [line["values"] | {"step": line["step"]} for line in read_jsonl(trained[0] / run.label / "curves.jsonl")]
    return [{k: v for k, v in line.items() if k != "train/tokens_per_second"} for line in lines]


@pytest.mark.parametrize("kind", [MUON, PARTS, STAGES], ids=lambda kind: kind[0])
def test_curves_and_weights_are_those_of_processes_that_hold_all(trained, kind):
    """To the bit with a part each, but where a gradient is clipped: its norm is added up in another order."""
    plain, shared = (Run(*kind, shard=shard, steps=12) for shard in (False, True))
    for point, other in zip(curve(trained, shared), curve(trained, plain), strict=True):
        assert point == pytest.approx(other, rel=1e-5)
    expected = weights(trained, plain)
    for rank in (0, 1):
        for name, value in weights(trained, shared, rank).items():
            if rank and name.startswith("bank."):
                continue  # it takes over the first one's at the next step
            if kind == MUON:
                assert value.equal(expected[name]), name
            else:
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shard", [False, True])
def test_a_training_goes_on_from_the_other_kind_of_group(trained, shard):
    run = Run(*MUON, shard=shard, resumes=True, steps=12)
    assert len(read_jsonl(trained[0] / run.label / "curves.jsonl")) == 3
    expected = weights(trained, Run(*MUON, shard=shard, steps=12))
    assert all(value.equal(expected[name]) for name, value in weights(trained, run).items())
    kept = load_file(trained[0] / run.label / "train.safetensors")
    assert kept["model/network.head.weight"].shape == expected["network.head.weight"].shape


def test_each_holds_half_of_weights_moments_and_average(trained):
    said = [m for m in trained[1] if m["label"] == Run(*MUON, shard=True, steps=12).label]
    assert {m["rank"] for m in said} == {0, 1}
    for message in said:
        held, there = message["held"]
        assert 0.49 < held / there < 0.52, "a row more where a matrix has an odd number"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            ("compute.shard=true",),
            "compute.shard=true: shares are those of several processes; use compute.processes=2 or ",
        ),
        (
            ("compute.shard=true", "compute.processes=2", "train.accumulate=2", "compute.compile=true"),
            "compute.compile=true: shares are gathered block by block, which is not compiled; use compute.compile=auto or ",
        ),
    ],
)
def test_shares_without_processes_and_compiled_are_refused(tmp_path, given, line):
    with pytest.raises(UserError) as caught:
        load(command(tmp_path / "words.txt", tmp_path, tmp_path, *given))
    assert str(caught.value) == f"{line}compute.shard=false"
