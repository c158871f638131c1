"""Submission: what is refused, in one line each, before anything is submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")

from harness.config.load import load
from harness.errors import UserError
from harness.slurm.plan import SECTIONS, plan_study
from tests.kit.slurm_kit import call, fake_slurm, write_toy


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
        (["slurm=gpu"], "slurm"),
        (["cluster=local"], "unknown key 'cluster'"),
        (["slurm.gpus=many"], "slurm.gpus=many"),
        (["slurm.timeout_min=0"], "slurm.timeout_min=0.0: must be above 0 minutes"),
        (["slurm.timeout_min=1"], "slurm.signal_delay_s=90: must be below the 60 seconds of slurm.timeout_min"),
        (["slurm.jobs=0"], "slurm.jobs=0: must be 1 or more"),
        (["slurm.gpus=-2"], "slurm.gpus=-2: must be -1 or more"),
        (["wait=maybe"], "wait=maybe"),
        (["slurm.more.comment='a\n#SBATCH --uid=0'"], "slurm.more.comment=a\\n#SBATCH --uid=0: a line feed ends an option"),
        (["slurm.partition='gpu\nrm'"], "slurm.partition=gpu\\nrm: a line feed ends an option of sbatch"),
        (["slurm.more.comment='a\n'"], "slurm.more.comment=a\\n: a line feed ends an option of sbatch"),
        (["slurm.more.comment='a\rb'"], "slurm.more.comment=a\\rb: a line feed ends an option of sbatch"),
        (["runs_dir='/tmp/a\n#SBATCH --uid=0'"], "runs_dir=/tmp/a\\n#SBATCH --uid=0: "),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(toy, arguments, line):
    with pytest.raises(UserError) as caught:
        load([*toy[2:], *arguments], [Path(toy[1])], SECTIONS)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_options_and_the_study_are_told_apart(toy):
    plan = plan_study(
        [*toy[2:], "slurm.gpus=1", "slurm.setup=[a b,c]", "wait=false", "slurm.more.reservation=x"],
        [Path(toy[1])],
        "me",
    )
    assert (plan.slurm.gpus, plan.slurm.setup, plan.wait) == (1, ["a b", "c"], False)
    assert plan.slurm.more == {"reservation": "x"}
    assert list(plan.jobs[0].arguments) == toy[2:]


def test_what_jobs_are_given_holds_no_login(toy):
    plan = plan_study([*toy[2:], "tracking.uri='http://me:my secret@host'"], [Path(toy[1])], "me")
    assert all("secret" not in repr(job) for job in [*plan.jobs, plan.last]) and "secret" not in str(plan)
    tree = plan.last.loaded().tree
    assert (
        tree["tracking"]["uri"] == "http://***@host"
        and plan.last.loaded().cfg.tracking.uri == "http://me:my secret@host"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["walk"], "'walk' comes first and is unknown; choose one of run, tune"),
        (["run", "only=[nobody]"], "only=nobody: is no method of this study; choose one of positions"),
        (["run", "plan=true"], "plan=true: ask harness.run, with the same arguments; harness.submit only submits"),
        (["run", "slurm.gpus=4"], "slurm.gpus=4: a job trains one model, on compute.processes=1 GPU(s); use slurm.gpus=1, "),
        (["tune", "tune=latent", "slurm.qos='a\nb'"], "slurm.qos=a\\nb: a line feed ends an option of sbatch"),
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
    assert said.error == "error: there is no sbatch here; use a login node of the cluster, or harness.run without one"


def test_help_names_every_option():
    said = call(["--help"])
    assert said.code == 0 and "slurm.partition=gpu" in said.out
    (line,) = [line for line in said.out.splitlines() if line.startswith("  slurm.timeout_min ")]
    assert "240.0  [above 0 minutes]" in line
