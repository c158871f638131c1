"""Submission: what is refused, in one line each, before anything is submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness.cluster.options import read_options

from harness.errors import UserError
from tests.cluster_kit import call, fake_slurm, write_toy

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")


@pytest.fixture
def toy(tmp_path) -> list[str]:
    return [*write_toy(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]


@pytest.fixture
def box(tmp_path, monkeypatch) -> Path:
    return fake_slurm(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["slurm.partiton=gpu"], "unknown key 'slurm.partiton'; did you mean 'slurm.partition'?"),
        (["slurm=gpu"], "unknown key 'slurm'; did you mean 'slurm."),
        (["cluster=pbs"], "cluster=pbs: is unknown; "),
        (["slurm.gpus=many"], "slurm.gpus=many: "),
        (["slurm.timeout_min=0"], "slurm.timeout_min=0.0: must be above 0 minutes"),
        (["slurm.timeout_min=1"], "slurm.signal_delay_s=90: must be above 0 and below the 60 seconds of slurm.timeout_min"),
        (["slurm.jobs=0"], "slurm.jobs=0: must be 1 or more"),
        (["slurm.gpus=-2"], "slurm.gpus=-2: must be 0 or more, or -1"),
        (["cluster=local", "wait=false"], "wait=false: the jobs of cluster=local are started by this command"),
        (["wait=maybe"], "wait=maybe: "),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(arguments, line):
    with pytest.raises(UserError) as caught:
        read_options(arguments)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_options_and_the_study_are_told_apart():
    cfg, others = read_options(
        ["study=exact", "slurm.gpus=4", "slurm.setup=[a b,c]", "compute.device=cpu", "wait=false"]
    )
    assert (cfg.slurm.gpus, cfg.slurm.setup, cfg.wait, cfg.cluster) == (4, ["a b", "c"], False, "slurm")
    assert others == ["study=exact", "compute.device=cpu"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["walk"], "'walk' comes first and is unknown; choose one of run, tune"),
        (["run", "only=[nobody]"], "only=nobody: is no method of this study; choose one of positions"),
        (["run", "plan=true"], "plan=true: ask harness.run, with the same arguments; harness.submit only submits"),
        (["run", "slurm.gpus=4"], "slurm.gpus=4: a job trains one model, on compute.processes=1 GPU(s); use slurm.gpus=1, "),
        (["run", "--cfg", "job"], "--cfg: ask harness.run, with the same arguments"),
    ],
)  # fmt: skip
def test_commands_that_are_refused_in_one_line(toy, box, arguments, line):
    said = call([*arguments, *toy])
    assert said.code == 2 and said.err.splitlines()[-1].startswith(f"error: {line}"), said.err
    assert not list(box.iterdir())


def test_a_missing_library_is_named_with_the_extra_that_brings_it(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = call(["run", *toy])
    assert said.code == 2
    assert said.err == (
        "error: harness.submit needs the library submitit; install it with: pip install 'few-step-harness[slurm]'\n"
    )


def test_a_machine_without_slurm_is_told_so(toy, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    said = call(["run", *toy])
    assert said.code == 2
    assert (
        said.error == "error: cluster=slurm: there is no sbatch here; use a login node of the cluster, or cluster=local"
    )


def test_help_names_every_option():
    said = call(["--help"])
    assert said.code == 0 and "slurm.partition=gpu" in said.out
    assert "  timeout_min      240.0" in said.out.splitlines()
